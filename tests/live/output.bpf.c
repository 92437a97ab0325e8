// SPDX-License-Identifier: GPL-2.0-or-later
/* Lets the programs' own emit() and emit_part() run on the CPU of whoever calls: for tests of rings and overflow. */
#include "probe.bpf.c"

struct push {
	struct request_entry entry;
	__u64 done_ns;
	__u32 count;
	__u32 part;
	__u64 begin_ns; /* not before; told back: when it did begin, and for how long it took */
	__u64 took_ns;
};

#define PATIENCE (1 << 22) /* looks at the clock, of some 40 ns each */

static long has_begun(__u32 index, struct push *push)
{
	return bpf_ktime_get_ns() >= push->begin_ns;
}

static long push_one(__u32 index, struct push *push)
{
	struct walk walk = {};

	if (!push->part) {
		emit(&push->entry, push->done_ns, index, bpf_get_smp_processor_id());
		return 0;
	}
	walk.part = push->entry.share;
	walk.device = push->entry.device;
	walk.op = push->entry.op;
	walk.flags = push->entry.flags;
	walk.part_bytes = push->entry.bytes;
	emit_part(&walk);
	return 0;
}

SEC("syscall")
int push(struct push *push)
{
	struct push copy = *push;

	bpf_loop(PATIENCE, has_begun, &copy, 0);
	push->begin_ns = bpf_ktime_get_ns();
	bpf_loop(copy.count, push_one, &copy, 0);
	push->took_ns = bpf_ktime_get_ns() - push->begin_ns;
	return 0;
}
