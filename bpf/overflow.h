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

/* A number that LLVM knows nothing of, so that it leaves no check of it out, which the verifier has to see. */
#define OPAQUE(number) asm volatile("" : "+r"(number))

static __always_inline void add(__u64 *total, __u64 amount)
{
	OPAQUE(amount); /* of adding 0 LLVM makes an atomic or, which came with 5.12 */
	__sync_fetch_and_add(total, amount);
}

/* The index of a value's bucket. The number of bits of value - 1 is n for (2^(n-1), 2^n]. */
static __always_inline __u64 bucket_of(__u64 value, __u32 first, __u32 last)
{
	__u64 rest = value ? value - 1 : 0, n = 0;

	if (rest >> 32) {
		n += 32;
		rest >>= 32;
	}
	if (rest >> 16) {
		n += 16;
		rest >>= 16;
	}
	if (rest >> 8) {
		n += 8;
		rest >>= 8;
	}
	if (rest >> 4) {
		n += 4;
		rest >>= 4;
	}
	if (rest >> 2) {
		n += 2;
		rest >>= 2;
	}
	n += rest >> 1 ? 2 : rest;
	if (n < first)
		n = first;
	if (n > last)
		n = last + 1;
	return n - first;
}

/*
 * One more in a value's bucket. Check and use in one piece: between them LLVM may put the index on the stack, where before
 * 5.16 the verifier forgets what it knows of a number.
 */
#define COUNT_IN(buckets, value, name)                                                                    \
	do {                                                                                              \
		__u64 bucket = bucket_of(value, BUCKET_##name##_FIRST, BUCKET_##name##_LAST);             \
		asm volatile("if %[bucket] > %[last] goto +3;"                                            \
			     "%[bucket] <<= 2;"                                                           \
			     "%[bucket] += %[first];"                                                     \
			     "lock *(u32 *)(%[bucket] + 0) += %[one];"                                    \
			     : [bucket] "+r"(bucket)                                                      \
			     : [first] "r"(buckets), [one] "r"(1),                                        \
			       [last] "i"(BUCKET_##name##_LAST - BUCKET_##name##_FIRST + 1)               \
			     : "memory");                                                                 \
	} while (0)

static __always_inline __u64 later(__u64 end, __u64 start)
{
	return end > start ? end - start : 0; /* clocks of two CPUs */
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
 * All is one function there, which with the tables below is more than 5.10's verifier goes through. So only a device's own
 * totals stay, and calls are lost.
 */
static __always_inline void overflow_request(struct request_entry *entry, __u64 done_ns, __u32 ring)
{
	lose_request(entry->device, entry->op, 1, entry->bytes - entry->part_bytes, entry->bytes);
}

static __always_inline void overflow_part(struct walk *walk, __u32 bytes, __u32 ring)
{
	lose_request(walk->device, walk->op, 0, bytes, 0);
}

static __always_inline void overflow_call(struct call_record *record, __u32 ring)
{
	struct ring_losses *lost = losses();

	if (lost)
		add(&lost->lost_calls, 1);
}

#else

/* The totals of a key, made at first sight; NULL when there is no room. */
static __always_inline struct overflow_totals *totals_of(struct overflow_key *key)
{
	struct overflow_totals *totals = bpf_map_lookup_elem(MAP(overflow), key), *fresh;
	__u32 zero = 0;

	if (totals)
		return totals;
	fresh = bpf_map_lookup_elem(MAP(nothing), &zero);
	if (fresh)
		bpf_map_update_elem(MAP(overflow), key, fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(MAP(overflow), key);
}

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
	totals = totals_of(&key);
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
	totals = totals_of(&key);
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

static __always_inline void add_call_op(struct call_overflow_totals *totals, __u32 op, __u32 count, __u32 of,
					__u64 submit_ns)
{
	add(&totals->calls[op], 1);
	add(&totals->requests[op], count);
	add(&totals->submit_ns[op], of ? submit_ns * count / of : submit_ns);
}

SUBPROGRAM int overflow_call(struct call_record *record, __u32 ring)
{
	struct call_overflow_totals *totals;
	struct call_overflow_key key = {};
	struct overflow_totals *fresh;
	struct ring_losses *lost = losses();
	__u64 submit_ns = 0, wait_since;
	__u32 zero = 0, others;
	bool submits;

	if (!record)
		return 0;
	key.owner_start_ns = record->owner_start_ns;
	key.tgid = record->tgid;
	key.ring = ring;
	key.engine = record->engine;
	key.flags = record->flags;
	totals = bpf_map_lookup_elem(MAP(call_overflow), &key);
	if (!totals) {
		fresh = bpf_map_lookup_elem(MAP(nothing), &zero);
		if (fresh)
			bpf_map_update_elem(MAP(call_overflow), &key, fresh, BPF_NOEXIST);
		totals = bpf_map_lookup_elem(MAP(call_overflow), &key);
	}
	if (!totals) {
		if (lost)
			add(&lost->lost_calls, 1);
		return 0;
	}
	if (lost)
		add(&lost->overflowed_calls, 1);
	add(&totals->records, 1);
	submits = record->flags & CALL_SUBMIT && record->submitted_ns;
	wait_since = submits ? record->submitted_ns : record->start_ns;
	if (submits) {
		submit_ns = later(record->submitted_ns, record->start_ns);
		COUNT_IN(totals->request_counts, record->requests, CALL);
		COUNT_IN(totals->submit_counts, submit_ns, LATENCY);
	}
	others = record->requests - record->reads - record->writes;
	if (record->reads)
		add_call_op(totals, CALL_READS, record->reads, record->requests, submit_ns);
	if (record->writes)
		add_call_op(totals, CALL_WRITES, record->writes, record->requests, submit_ns);
	if (others || (submits && !record->requests))
		add_call_op(totals, CALL_OTHERS, others, record->requests, submit_ns);
	add(&totals->read_bytes, record->read_bytes);
	add(&totals->write_bytes, record->write_bytes);
	add(&totals->reaped, record->reaped);
	if (record->flags & CALL_WAIT) {
		add(&totals->wait_ns, later(record->end_ns, wait_since));
		COUNT_IN(totals->wait_counts, later(record->end_ns, wait_since), LATENCY);
	}
	tell_reader();
	return 0;
}

#endif

#endif
