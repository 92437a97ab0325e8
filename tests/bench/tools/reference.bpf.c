// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What we compare our cost with: latency as biolatency counts it (tp_btf at issue and complete, a hash by request, a log2
 * histogram by device), and the floor, programs that do nothing. Written for the benchmark; nothing is installed.
 */
#include <stdbool.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#define LLMIO_PLAIN
#include "variant.h"
#include "record.h"
#include "kernel_types.h"

#define SLOTS 36

struct histogram {
	__u32 slots[SLOTS];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u64);
	__type(value, __u64);
} issued SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256);
	__type(key, __u32);
	__type(value, struct histogram);
} histograms SEC(".maps");

SEC("tp_btf/block_rq_issue")
int BPF_PROG(latency_issue, struct request *rq)
{
	__u64 key = (__u64)rq, now = bpf_ktime_get_ns();

	bpf_map_update_elem(&issued, &key, &now, BPF_ANY);
	return 0;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(latency_complete, struct request *rq)
{
	__u64 key = (__u64)rq, now = bpf_ktime_get_ns(), *then = bpf_map_lookup_elem(&issued, &key), us;
	struct gendisk *disk = rq->q->disk;
	__u32 device = (__u32)disk->major << 20 | (__u32)disk->first_minor, slot = 0;
	struct histogram *histogram;

	if (!then)
		return 0;
	us = (now - *then) / 1000;
	histogram = bpf_map_lookup_elem(&histograms, &device);
	if (!histogram) {
		struct histogram empty = {};

		bpf_map_update_elem(&histograms, &device, &empty, BPF_NOEXIST);
		histogram = bpf_map_lookup_elem(&histograms, &device);
	}
	if (histogram) {
		for (; slot < SLOTS - 1 && us > 1; slot++)
			us >>= 1;
		if (slot < SLOTS)
			__sync_fetch_and_add(&histogram->slots[slot], 1);
	}
	bpf_map_delete_elem(&issued, &key);
	return 0;
}

SEC("tp_btf/block_io_start")
int BPF_PROG(empty_start, struct request *rq)
{
	return 0;
}

SEC("tp_btf/block_rq_issue")
int BPF_PROG(empty_issue, struct request *rq)
{
	return 0;
}

SEC("tp_btf/block_rq_complete")
int BPF_PROG(empty_complete, struct request *rq)
{
	return 0;
}

SEC("tp_btf/writeback_dirty_folio")
int BPF_PROG(dirtied_nothing, struct folio *folio)
{
	return 0;
}

#define CALLED(name)                                  \
	SEC("tracepoint/syscalls/sys_" #name)         \
	int called_##name(void *ctx)                  \
	{                                             \
		return 0;                             \
	}

CALLED(enter_io_submit)
CALLED(exit_io_submit)
CALLED(enter_io_getevents)
CALLED(exit_io_getevents)

char LICENSE[] SEC("license") = "GPL";
