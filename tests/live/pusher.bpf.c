// SPDX-License-Identifier: GPL-2.0-or-later
/* Puts request records of any size into a real ring, for the reader's tests: kept or discarded, as the caller says. */
#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "record.h"

struct push {
	__u32 bytes;
	__u32 count;
	__u32 discard;
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} ring SEC(".maps");

__u64 refused = 0;

SEC("syscall")
int push(struct push *arguments)
{
	for (__u32 i = 0; i < 1024; i++) {
		struct request_record *record;

		if (i >= arguments->count)
			break;
		record = bpf_ringbuf_reserve(&ring, sizeof(*record), 0);
		if (!record) {
			refused++;
			continue;
		}
		__builtin_memset(record, 0, sizeof(*record));
		record->bytes = record->request_bytes = arguments->bytes;
		record->sector = i;
		record->made_ns = 1;
		record->done_ns = 2;
		if (arguments->discard)
			bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		else
			bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
