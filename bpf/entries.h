/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The kept entry of a request: where it lies, how it begins, how it leaves as a record. */
#ifndef LLMIO_ENTRIES_H
#define LLMIO_ENTRIES_H

/* request_entry.in_flight */
#define IDLE 0
#define STARTED 1
#define UNSTARTED 2

/* struct request has some 250 bytes, behind it is what its driver needs, and the next one begins at a cache line. */
#define REQUEST_SHIFT 8

static __always_inline __u8 flags_of(__u32 cmd_flags)
{
	__u8 flags = 0;

	if (cmd_flags & REQUEST_FLAG(RAHEAD))
		flags |= REQUEST_READAHEAD;
	if (cmd_flags & REQUEST_FLAG(SYNC))
		flags |= REQUEST_SYNC;
	if (cmd_flags & REQUEST_FLAG(META))
		flags |= REQUEST_METADATA;
	if (cmd_flags & REQUEST_FLAG(FUA))
		flags |= REQUEST_FUA;
	return flags;
}

static __always_inline void emit(struct request_entry *entry, __u64 done_ns, __u64 sector, __u16 hw_queue)
{
	__u32 ring = ring_of_cpu();
	struct place place;
	struct request_record *record = new_record(&place, ring, &entry->share, entry->device, entry->op);

	if (!record) {
		overflow_request(entry, done_ns, ring);
		return;
	}
	record->made_ns = entry->made_ns;
	record->issued_ns = entry->issued_ns;
	record->done_ns = done_ns;
	record->sector = sector;
	record->bytes = entry->bytes - entry->part_bytes;
	record->request_bytes = entry->bytes;
	record->requeues = entry->issues > 1 ? entry->issues - 1 : 0;
	record->hw_queue = hw_queue;
	record->flags |= entry->flags;
	record->status = entry->status;
	commit(&place);
}

/* blk_status_t, as since 5.16; before, the tracepoint had its errno (blk_errors in block/blk-core.c). */
static __always_inline __u8 status_of(int error)
{
	if (error >= 0)
		return (__u8)error;
	switch (-error) {
	case 95: /* EOPNOTSUPP */
		return 1;
	case 110: /* ETIMEDOUT */
		return 2;
	case 28: /* ENOSPC */
		return 3;
	case 67: /* ENOLINK */
		return 4;
	case 121: /* EREMOTEIO */
		return 5;
	case 52: /* EBADE */
		return 6;
	case 61: /* ENODATA */
		return 7;
	case 84: /* EILSEQ */
		return 8;
	case 12: /* ENOMEM */
		return 9;
	case 11: /* EAGAIN */
		return 12;
	default:
		return 10; /* BLK_STS_IOERR */
	}
}

static __always_inline void forget_share(struct request_entry *entry)
{
	__builtin_memset(&entry->share, 0, sizeof(entry->share));
	entry->bio = 0;
}

/*
 * The completion of a request was not seen: the kernel skips programs now and then (recursion misses, and see
 * docs/kernel.md). What it was asked for is known if it was issued; how long it took is not. One that was not issued
 * may have been merged unseen, and is only counted.
 */
SUBPROGRAM int expire(struct request_entry *entry)
{
	struct device_counts *counts;

	if (!entry)
		return 0;
	counts = counts_of(entry->slot);
	if (counts)
		count(&counts->expired);
	if (!entry->issues)
		return 0;
	entry->bytes = entry->issued_bytes;
	if (entry->merged) /* whose the parts were cannot be told any more */
		forget_share(entry);
	entry->flags |= REQUEST_EXPIRED;
	emit(entry, 0, SECTOR_UNKNOWN, 0);
	return 0;
}

static __always_inline __u32 device_of(struct request *rq)
{
	return number_of_disk(disk_of(rq));
}

static SIDE_PATH struct request_entry *displaced_entry(__u64 key)
{
	struct request_entry *entry = bpf_map_lookup_elem(MAP(displaced_requests), &key), fresh = { .request = key };

	if (entry)
		return entry;
	bpf_map_update_elem(MAP(displaced_requests), &key, &fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(MAP(displaced_requests), &key);
}

#if defined(LLMIO_PLAIN)

/*
 * The request's address as a number: the verifier allows no arithmetic with an address but the difference of two, and
 * that of `control` stays.
 */
static __always_inline __u64 number_of(struct request *rq)
{
	return (__u64)rq - (__u64)&control;
}

/*
 * By the address alone: requests of a pool have places of their own and next to each other. A hash would put each on
 * another page, which takes a tenth of all our time, most likely in walks of the page tables (docs/kernel.md).
 */
static __always_inline struct request_entry *place_of(__u64 key)
{
	__u32 index = key >> REQUEST_SHIFT & control.requests_mask;

	return bpf_map_lookup_elem(MAP(requests), &index);
}

/* NULL when it has none yet. A place is never given back: if it is nobody's, the request is not displaced either. */
static __always_inline struct request_entry *find_entry(__u64 key)
{
	struct request_entry *entry = place_of(key);

	if (!entry || entry->request == key)
		return entry;
	return entry->request ? bpf_map_lookup_elem(MAP(displaced_requests), &key) : NULL;
}

/* The request's kept entry, made at first sight; NULL when there is no room for one. */
static __always_inline struct request_entry *kept_entry(__u64 key)
{
	struct request_entry *entry = place_of(key);

	if (!entry || entry->request == key)
		return entry;
	if (!entry->request && __sync_val_compare_and_swap(&entry->request, 0, key) == 0)
		return entry;
	return displaced_entry(key);
}

#else

/* A place in the array cannot be claimed without fetching atomics, which came with 5.12: all are in the hash. */
static __always_inline __u64 number_of(struct request *rq)
{
	return (__u64)rq;
}

static __always_inline struct request_entry *find_entry(__u64 key)
{
	return bpf_map_lookup_elem(MAP(displaced_requests), &key);
}

static __always_inline struct request_entry *kept_entry(__u64 key)
{
	return displaced_entry(key);
}

#endif

/* An entry begins anew. What was in flight in it has expired. */
static __always_inline void begin(struct request_entry *entry, struct request *rq, __u32 cmd_flags)
{
	__u32 device = device_of(rq);

	if (entry->in_flight == STARTED)
		expire(entry);
	if (entry->device != device) {
		entry->device = device;
		entry->slot = claim_slot(device);
	}
	entry->issued_ns = 0;
	entry->issues = 0;
	entry->bytes = 0;
	entry->part_bytes = 0;
	entry->merged = 0;
	entry->status = 0;
	entry->op = op_of(cmd_flags, READ(rq, __data_len));
	entry->flags = flags_of(cmd_flags);
}

/* A request whose start was not seen: nobody is known to own it. A flush of its own is the block layer's. */
static __always_inline void begin_unstarted(struct request_entry *entry, struct request *rq)
{
	begin(entry, rq, READ(rq, cmd_flags));
	entry->flags |= REQUEST_UNSTARTED;
	entry->made_ns = entry->op == OP_FLUSH ? 0 : READ(rq, start_time_ns);
	forget_share(entry);
	if (entry->op == OP_FLUSH)
		own_by_kernel(&entry->share);
	entry->in_flight = UNSTARTED;
}

#endif
