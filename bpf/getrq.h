/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How a request starts before 6.5, where no tracepoint in the submitter's context has it: block_getrq has the bio that it
 * is about to be made from. That bio is kept until a request with it is issued, merged away, or completed without either.
 */
#ifndef LLMIO_GETRQ_H
#define LLMIO_GETRQ_H

#if defined(LLMIO_PLAIN)

static __always_inline bool start_from_bio(struct request_entry *entry, struct request *rq)
{
	return false;
}

static __always_inline bool start_unissued(struct request_entry **entry, struct request *rq)
{
	return false;
}

static __always_inline bool merge_unissued(struct request_entry *entry, struct request *rq)
{
	return false;
}

#else

/* Bios that merged in front of the one that a request was made from. */
#define FRONT_MERGES_MAX 32

static __always_inline int get_request(struct bio *bio)
{
	struct made_bio made = { .device = number_of_disk(disk_of_bio(bio)), .cmd_flags = READ(bio, bi_opf) };
	__u64 key = (__u64)bio;
	struct device_counts *counts;
	bool expired;

	if (!control.running)
		return 0;
	made.made_ns = bpf_ktime_get_ns();
	made.slot = claim_slot(made.device);
	made.op = op_of(made.cmd_flags, READ(bio, bi_iter.bi_size));
	identify_bio(&made.share, &key, made.made_ns);
	counts = counts_of(made.slot);
	expired = bpf_map_lookup_elem(MAP(made_bios), &key) != NULL;
	if (bpf_map_update_elem(MAP(made_bios), &key, &made, BPF_ANY)) {
		/* It will complete without a start, as nobody's. */
		if (counts)
			counts->untracked++;
		return 0;
	}
	if (counts) {
		counts->started++;
		add(&counts->expired, expired);
	}
	return 0;
}

PROGRAM(block_getrq, struct bio *bio)
{
	return get_request(bio);
}

/* Before 5.11, e8a676d61c07: the queue came first. */
PROGRAM_AT(1, block_getrq, void *queue, struct bio *bio)
{
	return get_request(bio);
}

/* The bio that a request was made from, if that was seen: the first in its chain that did not merge. */
static __always_inline struct made_bio *made_bio_of(struct request *rq, __u64 *key)
{
	struct bio *bio = READ(rq, bio);
	struct made_bio *made;

	_Pragma("clang loop unroll(disable)")
	for (int i = 0; i < FRONT_MERGES_MAX && bio; i++) {
		*key = (__u64)bio;
		made = bpf_map_lookup_elem(MAP(made_bios), key);
		if (made)
			return made;
		bio = READ(bio, bi_next);
	}
	return NULL;
}

static SIDE_PATH bool start_from_bio(struct request_entry *entry, struct request *rq)
{
	struct made_bio *made;
	__u64 key;

	if (!control.starts_with_bio)
		return false;
	made = made_bio_of(rq, &key);
	if (!made)
		return false;
	begin(entry, rq, made->cmd_flags);
	entry->share = made->share;
	entry->bio = key;
	entry->made_ns = made->made_ns;
	entry->in_flight = STARTED;
	bpf_map_delete_elem(MAP(made_bios), &key);
	return true;
}

/* A request completes that was never issued: an empty flush, or an error before. */
static __always_inline bool start_unissued(struct request_entry **entry, struct request *rq)
{
	if (!control.starts_with_bio)
		return false;
	if (!*entry)
		*entry = kept_entry(number_of(rq));
	return *entry && start_from_bio(*entry, rq);
}

/* A request became a part of another one before it was issued. */
static __always_inline bool merge_unissued(struct request_entry *entry, struct request *rq)
{
	struct device_counts *counts;
	struct made_bio *made;
	struct share share;
	__u64 key;

	if (!control.starts_with_bio || (entry && entry->in_flight != IDLE))
		return false;
	made = made_bio_of(rq, &key);
	if (!made)
		return false;
	counts = counts_of(made->slot);
	if (counts)
		counts->merged++;
	share = made->share;
	bpf_map_update_elem(MAP(bios), &key, &share, BPF_ANY); /* the other one has it now */
	bpf_map_delete_elem(MAP(made_bios), &key);
	return true;
}

#endif

#endif
