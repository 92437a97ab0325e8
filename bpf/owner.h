/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who asked for a bio and by which engine, decided while its request is made, or while it merges into one, and from facts
 * only: the current task, its saved registers, the last writer of an inode. Nothing here may look at names.
 */
#ifndef LLMIO_OWNER_H
#define LLMIO_OWNER_H

/*
 * The system call that the current task is in. Asking the kernel for its registers costs a call, 50 ns where returns are mitigated;
 * they lie at the same place of every stack.
 */
static __always_inline long syscall_of(struct task_struct *task)
{
	unsigned long stack = WORD(task_struct, task, stack);
	struct pt_regs *regs;

	if (!control.registers_offset)
		control.registers_offset = find_registers(task);
	regs = AS(pt_regs, stack + control.registers_offset);
	return SYSCALL_OF(regs);
}

static __always_inline __u8 engine_of(struct task_struct *task, __u32 task_flags)
{
	/* First: io_uring's workers and SQPOLL threads hold a copy of somebody's old registers. */
	if (task_flags & PF_IO_WORKER)
		return ENGINE_IO_URING;
	if (task_flags & PF_KTHREAD)
		return ENGINE_KERNEL;
	switch (syscall_of(task)) {
	case SYSCALL_IO_SUBMIT:
		return ENGINE_LIBAIO;
	case SYSCALL_IO_URING_ENTER:
		return ENGINE_IO_URING;
	case SYSCALL_NONE:
	case SYSCALL_MMAP: /* MAP_POPULATE */
	case SYSCALL_MADVISE:
	case SYSCALL_MLOCK:
	case SYSCALL_MLOCK2:
	case SYSCALL_MLOCKALL:
		return ENGINE_MMAP;
	default:
		return ENGINE_POSIX;
	}
}

/*
 * Tell user space who a process is, once, while it is alive. Seen only after the record was written: else its next
 * request tries again. Returns 1 if user space knows it.
 */
GLOBAL int introduce(__u64 address)
{
	struct task_struct *task = AS(task_struct, address), *leader = READ(task, group_leader), *parent;
	struct process_key key = { .start = READ(leader, start_boottime), .tgid = (__u32)READ(leader, tgid) };
	struct process_record *record;
	__u32 one = 1;

	if (bpf_map_lookup_elem(MAP(seen), &key))
		return 1;
	record = bpf_ringbuf_reserve(MAP(processes_ring), sizeof(*record), 0);
	if (!record) {
		struct ring_losses *lost = losses();

		if (lost)
			__sync_fetch_and_add(&lost->processes, 1);
		return 0;
	}
	parent = READ(leader, real_parent);
	record->time_ns = bpf_ktime_get_ns();
	record->start_ns = key.start;
	record->tgid = key.tgid;
	record->parent_tgid = READ(parent, tgid);
	record->parent_start_ns = READ(parent, group_leader, start_boottime);
	record->flags = READ(task, flags) & PF_KTHREAD ? PROCESS_KERNEL_THREAD : 0;
	key.start /= USER_TICK_NS;
	if (bpf_map_lookup_elem(MAP(followed), &key))
		record->flags |= PROCESS_FOLLOWED;
	record->reserved = 0;
	bpf_probe_read_kernel_str(record->comm, sizeof(record->comm), (void *)leader + OFFSET(task_struct, comm));
	key.start = record->start_ns;
	bpf_ringbuf_submit(record, 0); /* wakes a reader that has read all: short processes must be looked at at once */
	bpf_map_update_elem(MAP(seen), &key, &one, BPF_ANY);
	return 1;
}

static __always_inline void own(struct share *share, struct task_struct *task)
{
	share->tgid = READ(task, tgid);
	share->owner_start_ns = READ(task, group_leader, start_boottime);
}

/* Of the kernel, and of none of its threads in particular: what it is shows in op, flags and path. */
static __always_inline void own_by_kernel(struct share *share)
{
	share->owner = OWNER_KERNEL;
	share->engine = ENGINE_KERNEL;
}

/* Workers pass on what others asked for: blk-throttle, dm, multipath. A loop device's asks for itself. */
static __always_inline bool is_loop_worker(struct task_struct *task)
{
	const void *function = work_of(task);

	return is_symbol(function, SYMBOL(loop_workfn)) || is_symbol(function, SYMBOL(loop_rootcg_workfn));
}

/* A thread of the kernel submits: its own, or for a process that has to be found. */
static __always_inline void set_owner_of_thread(struct share *share, struct target *target, __u64 address)
{
	struct task_struct *task = AS(task_struct, address);

	if (READ(task, flags) & PF_WQ_WORKER && !is_loop_worker(task)) {
		struct kiocb *kiocb = AS(kiocb, target->kiocb);
		const void *complete;
		struct task_struct *waiter;
		__u64 waiting;
		__u32 flags;

		if (!target->kiocb)
			return;
		complete = READ(kiocb, ki_complete);
		waiting = target->dio ? waiter_of(AS(iomap_dio, target->dio)) : 0;
		waiter = AS(task_struct, waiting);
		flags = READ(waiter, flags);
		if (complete) {
			share->engine = complete == SYMBOL(aio_complete_rw) ? ENGINE_LIBAIO :
					complete == SYMBOL(io_complete_rw)  ? ENGINE_IO_URING :
									      ENGINE_UNKNOWN;
		} else if (waiting && !(flags & PF_KTHREAD)) { /* synchronous */
			share->engine = flags & PF_IO_WORKER ? ENGINE_IO_URING : ENGINE_POSIX;
			share->owner = OWNER_PROCESS;
			own(share, waiter);
			introduce(waiting);
		}
		return;
	}
	share->engine = ENGINE_KERNEL;
	share->owner = OWNER_KERNEL;
	own(share, task);
	introduce(address);
}

/* Written back: whoever flushes is not who wrote. */
static __always_inline void set_writer(struct share *share, __u64 key)
{
	struct share *writer = bpf_map_lookup_elem(MAP(writers), &key);

	if (!writer || writer->inode != share->inode || writer->inode_generation != share->inode_generation ||
	    writer->file_device != share->file_device)
		return; /* dirty since before the probe ran, or there was no room */
	share->owner_start_ns = writer->owner_start_ns;
	share->tgid = writer->tgid;
	share->engine = writer->engine;
	share->owner = writer->owner;
	share->shared = writer->shared;
}

/* Discards of a process that asked for them; filesystems send them for whoever frees blocks. */
static __always_inline bool asks_for_discards(struct task_struct *task)
{
	long number = syscall_of(task);

	return !(READ(task, flags) & (PF_KTHREAD | PF_IO_WORKER)) && (number == SYSCALL_IOCTL || number == SYSCALL_FALLOCATE);
}

/*
 * Whose a bio is and which file's; share and target are all zero before. Returns 1 if whoever submits it is its owner:
 * then it is left to the caller to introduce that process.
 */
SUBPROGRAM int set_share(struct share *share, struct target *target, __u64 bio, __u32 opf, __u32 op)
{
	__u64 address = bpf_get_current_task();
	struct task_struct *task = AS(task_struct, address);
	__u32 task_flags = READ(task, flags);

	if (!share || !target)
		return 0;
	if (opf & REQUEST_FLAG(META) ||
	    (op == OP_DISCARD && !asks_for_discards(task))) {
		own_by_kernel(share); /* a filesystem's own blocks, whoever happens to wait for them */
		return 0;
	}
	if (bio && (op == OP_READ || op == OP_WRITE))
		look_at(target, AS(bio, bio), opf, op);
	share->path = target->path;
	if (target->unsure)
		return 0;
	if (target->held || (target->path == PATH_SWAP && op == OP_WRITE)) {
		own_by_kernel(share);
		return 0;
	}
	if (target->raw)
		identify_raw(share, target->raw);
	else if (target->inode)
		identify_file(share, AS(inode, target->inode));
	if (target->path == PATH_WRITEBACK) {
		set_writer(share, target->inode);
		return 0;
	}
	if (task_flags & PF_KTHREAD && !(task_flags & PF_IO_WORKER)) {
		set_owner_of_thread(share, target, address);
		return 0;
	}
	share->engine = engine_of(task, task_flags);
	share->owner = OWNER_PROCESS;
	own(share, task);
	return 1;
}

#endif
