/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Who belongs to the session, and when a process becomes another program. None of this is on a request's path. */
#ifndef LLMIO_PROCESSES_H
#define LLMIO_PROCESSES_H

static __always_inline struct process_key followed_key(struct task_struct *leader)
{
	struct process_key key = {
		.start = READ(leader, start_boottime) / USER_TICK_NS,
		.tgid = (__u32)READ(leader, tgid),
	};

	return key;
}

/* A child of a followed process is followed, before it can do anything. */
static __always_inline int follow(struct task_struct *parent, struct task_struct *child, bool again)
{
	struct process_key key = followed_key(READ(parent, group_leader));
	__u32 one = 1;

	if (READ(child, pid) != READ(child, tgid)) /* a thread */
		return 0;
	if (!bpf_map_lookup_elem(MAP(followed), &key))
		return 0;
	key = followed_key(child);
	if (bpf_map_update_elem(MAP(followed), &key, &one, BPF_ANY) && !again)
		__sync_fetch_and_add(&control.followed_full, 1);
	return 0;
}

PROGRAM(sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	return follow(parent, child, false);
}

/* When `followed` is empty, the session is over. */
static __always_inline int unfollow(struct task_struct *task)
{
	struct process_key key = followed_key(READ(task, group_leader));

	if (READ(task, signal, live.counter) == 0) /* do_exit has counted the last thread down before this tracepoint */
		bpf_map_delete_elem(MAP(followed), &key);
	return 0;
}

PROGRAM(sched_process_exit, struct task_struct *task)
{
	return unfollow(task);
}

/* Same process, another program: introduce it again at its next request. */
static __always_inline int become_another(struct task_struct *task)
{
	struct process_key key = {
		.start = READ(task, group_leader, start_boottime),
		.tgid = (__u32)READ(task, tgid),
	};

	if (bpf_map_delete_elem(MAP(seen), &key) == 0)
		__sync_fetch_and_add(&control.seen_epoch, 1);
	return 0;
}

PROGRAM(sched_process_exec, struct task_struct *task)
{
	return become_another(task);
}

#if defined(LLMIO_PLAIN)
PROGRAM_AGAIN(sched_process_fork, struct task_struct *parent, struct task_struct *child)
{
	return follow(parent, child, true);
}

PROGRAM_AGAIN(sched_process_exit, struct task_struct *task)
{
	return unfollow(task);
}

PROGRAM_AGAIN(sched_process_exec, struct task_struct *task)
{
	return become_another(task);
}
#endif

#endif
