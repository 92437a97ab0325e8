/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How records of requests get to user space: a ring for each CPU, or for each few, so that CPUs do not wait for each other.
 * What is in a record is output.h's.
 *
 * Where helpers read, and with BCC, these are the kernel's own ring buffers. Plain has slots in a map that user space has
 * mapped, taken by compare-and-swap (since 5.12): without the buffer's lock and its two calls a request costs 50 ns less.
 * A slot is written when its number is in front of its record; llmio_probe/kernel/slots.py reads as far as that goes.
 */
#ifndef LLMIO_RINGS_H
#define LLMIO_RINGS_H

/* Which of the rings is this CPU's. */
static __always_inline __u32 ring_of_cpu(void)
{
	return bpf_get_smp_processor_id() & control.rings_mask;
}

#if defined(LLMIO_PLAIN)

/* An interrupt, or another CPU of the same ring, may be faster; after so many times the record counts as overflowed. */
#define RESERVE_TRIES 8

/* A place in a ring, between reserve and commit. */
struct place {
	__u32 ring;
	__u64 number; /* of the record, since the programs were loaded */
	struct request_slot *slot;
	struct ring_position *position;
};

/* Room for a record in the ring of that number, or NULL. */
static __always_inline struct request_record *reserve(struct place *place, __u32 ring)
{
	struct ring_position *position = bpf_map_lookup_elem(MAP(ring_positions), &ring);
	__u32 slots = control.ring_slots, index;

	if (!position)
		return NULL;
	for (int i = 0; i < RESERVE_TRIES; i++) {
		__u64 number = *(volatile __u64 *)&position->reserved;

		/* Signed: an interrupt may have reserved more, and the reader have released that, since number was read. */
		if ((__s64)(number - *(volatile __u64 *)&position->released) >= (__s64)slots)
			return NULL;
		if (__sync_val_compare_and_swap(&position->reserved, number, number + 1) != number)
			continue;
		index = ring * slots + (number & (slots - 1));
		place->number = number;
		place->position = position;
		place->slot = bpf_map_lookup_elem(MAP(request_slots), &index);
		return place->slot ? &place->slot->record : NULL;
	}
	return NULL;
}

/* By a record that nobody reads. Without room for it, another one tries again. */
static SIDE_PATH int wake_reader(void)
{
	void *record = bpf_ringbuf_reserve(MAP(processes_ring), sizeof(struct process_record), 0);

	if (!record)
		return 0;
	control.woken = 1;
	bpf_ringbuf_discard(record, BPF_RB_FORCE_WAKEUP);
	return 0;
}

static __always_inline void commit(struct place *place)
{
	__u64 number = place->number;

#if defined(__TARGET_ARCH_x86)
	asm volatile("" ::: "memory"); /* the processor keeps the order of stores */
	*(volatile __u64 *)&place->slot->written = number + 1;
#else
	__sync_lock_test_and_set(&place->slot->written, number + 1);
#endif
	/* A reader that polls is woken, once until it reads, when the ring is half full; looked at for one in 64. */
	if (!(number & 63) && !control.woken && number - place->position->released >= control.ring_slots / 2)
		wake_reader();
}

#else

struct place {
	__u32 ring;
	struct request_record *record;
};

static __always_inline struct request_record *reserve(struct place *place, __u32 ring)
{
	void *buffer = bpf_map_lookup_elem(MAP(requests_rings), &ring);

	place->ring = ring;
	place->record = buffer ? bpf_ringbuf_reserve(buffer, sizeof(*place->record), 0) : NULL;
	return place->record;
}

static __always_inline bool buffer_is_half_full(__u32 ring)
{
	void *buffer = bpf_map_lookup_elem(MAP(requests_rings), &ring);

	return buffer && bpf_ringbuf_query(buffer, BPF_RB_AVAIL_DATA) >= control.ring_bytes / 2;
}

/* A reader that polls is woken, once until it reads, when the ring is half full; looked at for one in 64, by the clock. */
static __always_inline void commit(struct place *place)
{
	__u64 flags = BPF_RB_NO_WAKEUP, number = place->record->done_ns;

	if (!((number ? number : bpf_ktime_get_ns()) & 63) && !control.woken && buffer_is_half_full(place->ring)) {
		control.woken = 1;
		flags = BPF_RB_FORCE_WAKEUP;
	}
	bpf_ringbuf_submit(place->record, flags);
}

#endif

#endif
