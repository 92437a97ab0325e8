/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * When a ring is full, nothing is lost but detail: what does not fit is added up here, by all that user space tells apart.
 *
 * A table by owner, file and so on, and by ring, so that its CPUs keep out of each other's way; adding is atomic all the
 * same, because an interrupt may come on top, and CPUs may share a ring. Entries stay while the programs are attached:
 * the reader takes differences. When even this is full, a device's own totals still add up.
 */
#ifndef LLMIO_OVERFLOW_H
#define LLMIO_OVERFLOW_H

/* Told last, when all has been added: whoever looks too early looks again. */
static __always_inline void tell_reader(void)
{
	if (!control.overflowed)
		control.overflowed = 1;
}

/* No room in the table either. */
static __always_inline void lose_request(__u32 device, __u64 op, __u32 requests, __u32 bytes, __u32 request_bytes)
{
	__u32 *slot = bpf_map_lookup_elem(MAP(device_slots), &device);
	struct device_counts *counts = counts_of(slot ? *slot : 0); /* claimed when the request began */
	struct ring_losses *lost = losses();

	if (lost)
		add(&lost->lost_records, 1);
	OPAQUE(op);
	if (!counts || op >= OPS)
		return;
	add(&counts->lost_requests[op], requests);
	add(&counts->lost_bytes[op], bytes);
	add(&counts->lost_request_bytes[op], request_bytes);
	tell_reader();
}

#if defined(LLMIO_BCC)

/*
 * All is one function there, which with the table below is more than 5.10's verifier goes through. So only a device's own
 * totals stay.
 */
static __always_inline void overflow_request(struct request_entry *entry, __u64 done_ns, __u32 ring)
{
	lose_request(entry->device, entry->op, 1, entry->bytes - entry->part_bytes, entry->bytes);
}

static __always_inline void overflow_part(struct walk *walk, __u32 bytes, __u32 ring)
{
	lose_request(walk->device, walk->op, 0, bytes, 0);
}

#else

static __always_inline void add_latencies(struct overflow_totals *totals, const struct request_entry *entry, __u64 done_ns)
{
	__u64 made_ns = entry->made_ns, issued_ns = entry->issued_ns;

	if (made_ns && issued_ns) {
		add(&totals->queue_ns, later(issued_ns, made_ns));
		COUNT_IN(totals->queue_counts, later(issued_ns, made_ns), LATENCY);
	}
	if (issued_ns && done_ns) {
		add(&totals->device_ns, later(done_ns, issued_ns));
		COUNT_IN(totals->device_counts, later(done_ns, issued_ns), LATENCY);
	}
	if (made_ns && done_ns) {
		add(&totals->total_ns, later(done_ns, made_ns));
		COUNT_IN(totals->total_counts, later(done_ns, made_ns), LATENCY);
	}
}

/* A finished request. No record of it is put together: nested calls share 512 bytes of stack. */
SUBPROGRAM int overflow_request(struct request_entry *entry, __u64 done_ns, __u32 ring)
{
	struct overflow_totals *totals;
	struct overflow_key key = {};
	struct ring_losses *lost;

	if (!entry)
		return 0;
	key.share = entry->share;
	key.device = entry->device;
	key.flags = (entry->flags & REQUEST_METADATA) | (entry->share.shared ? REQUEST_SHARED : 0);
	key.op = entry->op;
	key.status = entry->status;
	key.ring = ring;
	totals = kept_totals(MAP(overflow), &key);
	if (!totals) {
		lose_request(entry->device, entry->op, 1, entry->bytes - entry->part_bytes, entry->bytes);
		return 0;
	}
	lost = losses();
	if (lost)
		add(&lost->overflowed_requests, 1);
	add(&totals->requests, 1);
	add(&totals->bytes, entry->bytes - entry->part_bytes);
	add(&totals->request_bytes, entry->bytes);
	add(&totals->requeues, entry->issues > 1 ? entry->issues - 1 : 0);
	if (done_ns) /* not an expired one's */
		totals->done_ns = done_ns;
	COUNT_IN(totals->size_counts, entry->bytes, SIZE);
	add_latencies(totals, entry, done_ns);
	tell_reader();
	return 0;
}

/* Bytes of a request that belong to another owner or file. */
SUBPROGRAM int overflow_part(struct walk *walk, __u32 bytes, __u32 ring)
{
	struct overflow_totals *totals;
	struct overflow_key key = {};

	if (!walk)
		return 0;
	key.share = walk->part;
	key.device = walk->device;
	key.flags = REQUEST_PART | (walk->flags & REQUEST_METADATA) | (walk->part.shared ? REQUEST_SHARED : 0);
	key.op = walk->op;
	key.ring = ring;
	totals = kept_totals(MAP(overflow), &key);
	if (!totals) {
		lose_request(walk->device, walk->op, 0, bytes, 0);
		return 0;
	}
	add(&totals->requests, 1);
	add(&totals->bytes, bytes);
	totals->done_ns = bpf_ktime_get_ns();
	tell_reader();
	return 0;
}

#endif

#endif
