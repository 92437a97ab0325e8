/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The app's view, beside the device's: what io_submit, io_getevents, io_pgetevents and io_uring_enter asked for and how
 * long they took. Optional: where it needs tracepoints, one armed syscall tracepoint costs every task of the host
 * 10 to 30 ns a syscall.
 */
#ifndef LLMIO_CALLS_H
#define LLMIO_CALLS_H

/*
 * io_submit's array is walked as far as IOCBS_MAX: DeepSpeed hands over its queue_depth at once, 8 to 128; fio up to its
 * iodepth. What is beyond counts as requests of op other, and the bytes as unknown.
 */

#define IORING_ENTER_GETEVENTS_FLAG 1

/* enum io_uring_op, UAPI */
#define IORING_READV 1
#define IORING_WRITEV 2
#define IORING_READ_FIXED 4
#define IORING_WRITE_FIXED 5
#define IORING_READ 22
#define IORING_WRITE 23
#define IORING_UNKNOWN (-1) /* where the kernel's headers do not say */

/* events/syscalls/sys_enter_NAME/format and sys_exit_NAME/format */
struct syscall_enter {
	__u64 common;
	__u64 nr;
	__u64 args[6];
};

struct syscall_exit {
	__u64 common;
	__u64 nr;
	__s64 ret;
};

/* call_state.flags */
#define CALL_SUBMIT 1	  /* hands requests to the kernel */
#define CALL_WAIT 2	  /* waits for completions */
#define CALL_POLLED 4	  /* no call was made: one request that an SQPOLL thread took by itself */
#define CALL_BYTES_PART 8 /* not all bytes could be read */

#if defined(LLMIO_PLAIN)

/* The current thread's, which lives as long as it does; NULL when it has none, and, if one is to be made, no memory. */
static __always_inline struct call_state *kept_call(bool make)
{
	return bpf_task_storage_get(MAP(call_states), bpf_get_current_task_btf(), NULL,
				    make ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);
}

#else

static __always_inline struct call_state *kept_call(bool make)
{
	__u32 thread = (__u32)bpf_get_current_pid_tgid();
	struct call_state *state = bpf_map_lookup_elem(MAP(calls), &thread), fresh = {};

	if (state || !make)
		return state;
	bpf_map_update_elem(MAP(calls), &thread, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(MAP(calls), &thread);
}

#endif

/* NULL when the thread is in no call that we saw begin. */
static __always_inline struct call_state *current_call(void)
{
	struct call_state *state = kept_call(false);

	return state && state->start_ns ? state : NULL;
}

static __always_inline void lose_call(void)
{
	struct ring_losses *lost = losses();

	if (lost)
		add(&lost->lost_calls, 1);
}

/* again: as the second program (variant.h). At the exit it finds no call any more, if the first one has run. */
static __always_inline int enter_call(__u32 flags, __u64 iocbs, bool again)
{
	struct call_state *state;

	if (!control.running)
		return 0;
	state = kept_call(true);
	if (!state) {
		if (!again)
			lose_call();
		return 0;
	}
	if (again && state->start_ns)
		return 0;
	*state = (struct call_state){ .flags = flags, .iocbs = iocbs, .seen_epoch = state->seen_epoch,
				      .seen_start = state->seen_start };
	state->start_ns = bpf_ktime_get_ns();
	return 0;
}

/* count: of the call's requests, those of that op. */
static __always_inline void add_call_op(struct call_totals *totals, const struct call_state *state, __u32 op, __u32 count,
					__u64 submit_ns)
{
	if (!(state->flags & CALL_POLLED))
		add(&totals->calls[op], 1);
	if (state->flags & CALL_BYTES_PART)
		add(&totals->parts[op], 1);
	add(&totals->requests[op], count);
	add(&totals->submit_ns[op], count < state->requests ? submit_ns * count / state->requests : submit_ns);
}

/* A call has ended. Atomic, for the process's other threads on CPUs of the same ring. */
static __always_inline void add_call(struct call_state *state, __u8 engine, __u32 reaped, __u64 end_ns)
{
	struct task_struct *task = AS(task_struct, bpf_get_current_task());
	struct call_key key = { .owner_start_ns = READ(task, group_leader, start_boottime), .tgid = READ(task, tgid),
				.ring = ring_of_cpu(), .engine = engine };
	bool submits = state->flags & CALL_SUBMIT && state->submitted_ns;
	__u64 submit_ns = 0, wait_ns;
	struct call_totals *totals;
	__u32 others;

	if (!control.running)
		return;
	/* Who only asks for what the page cache has makes no request that would introduce it. */
	if (state->seen_epoch != control.seen_epoch || state->seen_start != (__u32)key.owner_start_ns) {
		__u32 epoch = control.seen_epoch;

		state->seen_start = (__u32)key.owner_start_ns;
		state->seen_epoch = introduce(bpf_get_current_task()) ? epoch : 0;
	}
	totals = kept_totals(MAP(call_totals), &key);
	if (!totals) {
		lose_call();
		return;
	}
	if (submits) {
		submit_ns = later(state->submitted_ns, state->start_ns);
		COUNT_IN(totals->request_counts, state->requests, CALL);
		COUNT_IN(totals->submit_counts, submit_ns, LATENCY);
	}
	if (state->reads) {
		add_call_op(totals, state, CALL_READS, state->reads, submit_ns);
		add(&totals->read_bytes, state->read_bytes);
	}
	if (state->writes) {
		add_call_op(totals, state, CALL_WRITES, state->writes, submit_ns);
		add(&totals->write_bytes, state->write_bytes);
	}
	others = state->requests - state->reads - state->writes;
	if (others || (submits && !state->requests))
		add_call_op(totals, state, CALL_OTHERS, others, submit_ns);
	if (state->flags & CALL_POLLED)
		add(&totals->polled, state->requests);
	if (state->flags & CALL_WAIT) {
		wait_ns = later(end_ns, submits ? state->submitted_ns : state->start_ns);
		add(&totals->reaped, reaped);
		add(&totals->wait_ns, wait_ns);
		COUNT_IN(totals->wait_counts, wait_ns, LATENCY);
	}
	/* Told last: whoever looks too early looks again. */
	if (!control.called)
		control.called = 1;
}

static __always_inline void add_read(struct call_state *state, __u64 bytes)
{
	state->reads++;
	state->read_bytes += bytes;
}

static __always_inline void add_write(struct call_state *state, __u64 bytes)
{
	state->writes++;
	state->write_bytes += bytes;
}

/* Bytes of a vector of one element; of longer ones nothing is read, and that is counted. */
static __always_inline __u64 vector_bytes(struct call_state *state, __u64 address, __u64 length)
{
	struct iovec vector;

	if (length == 1 && bpf_probe_read_user(&vector, sizeof(vector), (void *)address) == 0)
		return vector.iov_len;
	state->flags |= CALL_BYTES_PART;
	return 0;
}

static __always_inline void add_iocb(struct call_state *state, __u32 index)
{
	struct iocb *address, iocb;

	if (bpf_probe_read_user(&address, sizeof(address), (void *)(state->iocbs + index * sizeof(address))) ||
	    bpf_probe_read_user(&iocb, sizeof(iocb), address)) {
		state->flags |= CALL_BYTES_PART;
		return;
	}
	switch (iocb.aio_lio_opcode) {
	case IOCB_CMD_PREAD:
		add_read(state, iocb.aio_nbytes);
		break;
	case IOCB_CMD_PREADV:
		add_read(state, vector_bytes(state, iocb.aio_buf, iocb.aio_nbytes));
		break;
	case IOCB_CMD_PWRITE:
		add_write(state, iocb.aio_nbytes);
		break;
	case IOCB_CMD_PWRITEV:
		add_write(state, vector_bytes(state, iocb.aio_buf, iocb.aio_nbytes));
		break;
	}
}

#if defined(LLMIO_PLAIN)

static long add_iocb_round(__u32 index, struct call_state **state)
{
	add_iocb(*state, index);
	return 0;
}

static __always_inline void add_iocbs(struct call_state *state, __u32 count)
{
	if (count == 1) /* the loop costs as much as the iocb */
		add_iocb(state, 0);
	else
		bpf_loop(count, add_iocb_round, &state, 0);
}

#elif defined(LLMIO_BCC)

static __always_inline void add_iocbs(struct call_state *state, __u32 count)
{
	for (__u32 i = 0; i < IOCBS_MAX; i++) {
		asm volatile("" : "+r"(count)); /* of two bounds LLVM makes one, of which the verifier knows nothing */
		if (i >= count)
			break;
		add_iocb(state, i);
	}
}

#else

GLOBAL int add_iocb_round(__u32 index)
{
	struct call_state *state = current_call();

	if (state)
		add_iocb(state, index);
	return 0;
}

static __always_inline void add_iocbs(struct call_state *state, __u32 count)
{
	for (__u32 i = 0; i < IOCBS_MAX && i < count; i++)
		add_iocb_round(i);
}

#endif

/* At the exit, when the kernel has said how many it took and their pages are surely there. */
static __always_inline void walk_iocbs(struct call_state *state)
{
	if (state->requests > IOCBS_MAX)
		state->flags |= CALL_BYTES_PART;
	add_iocbs(state, state->requests < IOCBS_MAX ? state->requests : IOCBS_MAX);
}

static __always_inline int leave_submit(__s64 result)
{
	struct call_state *state = current_call();

	if (!state)
		return 0;
	state->submitted_ns = bpf_ktime_get_ns();
	if (result > 0) {
		state->requests = result;
		walk_iocbs(state);
	}
	add_call(state, ENGINE_LIBAIO, 0, state->submitted_ns);
	state->start_ns = 0;
	return 0;
}

static __always_inline int leave_getevents(__s64 result)
{
	struct call_state *state = current_call();

	if (!state)
		return 0;
	add_call(state, ENGINE_LIBAIO, result > 0 ? result : 0, bpf_ktime_get_ns());
	state->start_ns = 0;
	return 0;
}

static __always_inline int enter_uring(__u64 to_submit, __u64 enter_flags, bool again)
{
	__u32 flags = (__u32)to_submit ? CALL_SUBMIT : 0;

	if (enter_flags & IORING_ENTER_GETEVENTS_FLAG)
		flags |= CALL_WAIT;
	return enter_call(flags, 0, again);
}

static __always_inline int leave_uring(void)
{
	struct call_state *state = current_call();
	__u64 now;

	if (!state)
		return 0;
	now = bpf_ktime_get_ns();
	/* Waiting begins with the last request handed over; a call that does not wait is submitting until its end. */
	if (state->flags & CALL_SUBMIT && !(state->flags & CALL_WAIT))
		state->submitted_ns = now;
	add_call(state, ENGINE_IO_URING, 0, now);
	state->start_ns = 0;
	return 0;
}

SYSCALL_PROGRAM(enter_io_submit, syscall_enter)
{
	return enter_call(CALL_SUBMIT, ctx->args[2], false);
}

SYSCALL_PROGRAM(exit_io_submit, syscall_exit)
{
	return leave_submit(ctx->ret);
}

SYSCALL_PROGRAM(enter_io_getevents, syscall_enter)
{
	return enter_call(CALL_WAIT, 0, false);
}

SYSCALL_PROGRAM(exit_io_getevents, syscall_exit)
{
	return leave_getevents(ctx->ret);
}

SYSCALL_PROGRAM(enter_io_pgetevents, syscall_enter)
{
	return enter_call(CALL_WAIT, 0, false);
}

SYSCALL_PROGRAM(exit_io_pgetevents, syscall_exit)
{
	return leave_getevents(ctx->ret);
}

SYSCALL_PROGRAM(enter_io_uring_enter, syscall_enter)
{
	return enter_uring(ctx->args[1], ctx->args[3], false);
}

SYSCALL_PROGRAM(exit_io_uring_enter, syscall_exit)
{
	return leave_uring();
}

#if !defined(LLMIO_BCC)
/* The same by fentry, where the kernel can attach to a function: it costs nobody else's calls anything. */
#define CALL_PROGRAMS(ENTRY, EXIT, again)                                                              \
	ENTRY(io_submit) { return enter_call(CALL_SUBMIT, SYSCALL_ARGUMENT_3(regs), again); }          \
	EXIT(io_submit) { return leave_submit(result); }                                               \
	ENTRY(io_getevents) { return enter_call(CALL_WAIT, 0, again); }                                \
	EXIT(io_getevents) { return leave_getevents(result); }                                         \
	ENTRY(io_pgetevents) { return enter_call(CALL_WAIT, 0, again); }                               \
	EXIT(io_pgetevents) { return leave_getevents(result); }                                        \
	ENTRY(io_uring_enter)                                                                          \
	{                                                                                              \
		return enter_uring(SYSCALL_ARGUMENT_2(regs), SYSCALL_ARGUMENT_4(regs), again);         \
	}                                                                                              \
	EXIT(io_uring_enter) { return leave_uring(); }

CALL_PROGRAMS(ENTRY_PROGRAM, EXIT_PROGRAM, false)
#if defined(LLMIO_PLAIN)
CALL_PROGRAMS(ENTRY_PROGRAM_AGAIN, EXIT_PROGRAM_AGAIN, true)
#endif
#endif

static __always_inline void add_request(struct call_state *state, struct io_kiocb *req)
{
	struct io_rw *rw = (struct io_rw *)req;

	state->requests++;
	state->submitted_ns = bpf_ktime_get_ns();
	switch (OPCODE_OF(req)) {
	case IORING_UNKNOWN:
		state->flags |= CALL_BYTES_PART;
		break;
	case IORING_READ:
	case IORING_READ_FIXED:
		add_read(state, BPF_CORE_READ(rw, len));
		break;
	case IORING_READV:
		add_read(state, vector_bytes(state, BPF_CORE_READ(rw, addr), BPF_CORE_READ(rw, len)));
		break;
	case IORING_WRITE:
	case IORING_WRITE_FIXED:
		add_write(state, BPF_CORE_READ(rw, len));
		break;
	case IORING_WRITEV:
		add_write(state, vector_bytes(state, BPF_CORE_READ(rw, addr), BPF_CORE_READ(rw, len)));
		break;
	}
}

/* Has the first of two programs added the request? It leaves a note, which is good for once. */
static __always_inline bool is_added(struct call_state *kept, struct io_kiocb *req, bool again)
{
#if defined(LLMIO_PLAIN)
	__u32 note = (__u64)req - (__u64)&control, added; /* see number_of() */

	if (PREEMPTIBLE && kept) {
		added = kept->added;
		kept->added = again ? 0 : note;
		return again && added == note;
	}
#endif
	return again;
}

/* Every request that io_uring takes, after it was prepared. */
static __always_inline int submit_req(struct io_kiocb *req, bool again)
{
	struct call_state *kept = kept_call(PREEMPTIBLE);
	struct call_state polled = { .flags = CALL_POLLED };

	if (!control.running || is_added(kept, req, again))
		return 0;
	if (kept && kept->start_ns) {
		add_request(kept, req);
		return 0;
	}
	if (!(READ(AS(task_struct, bpf_get_current_task()), flags) & PF_IO_WORKER)) /* attached in the middle of its call */
		return 0;
	add_request(&polled, req);
	add_call(&polled, ENGINE_IO_URING, 0, 0);
	return 0;
}

PROGRAM(io_uring_submit_req, struct io_kiocb *req)
{
	return submit_req(req, false);
}

#if !defined(LLMIO_PLAIN)
/* Its name before 6.3. */
PROGRAM(io_uring_submit_sqe, struct io_kiocb *req)
{
	return submit_req(req, false);
}

/* Before 5.19 the ring came first. */
PROGRAM_AT(1, io_uring_submit_sqe, void *ring, struct io_kiocb *req)
{
	return submit_req(req, false);
}
#else
PROGRAM_AGAIN(io_uring_submit_req, struct io_kiocb *req)
{
	return submit_req(req, true);
}
#endif

#endif
