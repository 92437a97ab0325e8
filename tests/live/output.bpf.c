// SPDX-License-Identifier: GPL-2.0-or-later
/* Hands records to the real output() of bpf/output.h, on the CPU of whoever calls: for tests of rings and overflow. */
#define LLMIO_PLAIN
#include <stdbool.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#include "variant.h"
#include "record.h"
#include "kernel_types.h"
#include "maps.h"
#include "counts.h"
#include "overflow.h"
#include "output.h"

struct push {
	struct request_record record;
	__u64 count;
};

static long push_one(__u32 index, struct push *push)
{
	struct request_record record = push->record;

	record.sector = index;
	record.hw_queue = bpf_get_smp_processor_id();
	output(&record);
	return 0;
}

SEC("syscall")
int push(struct push *push)
{
	struct push copy = *push;

	bpf_loop(copy.count, push_one, &copy, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
