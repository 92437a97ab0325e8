/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What merged into a request: merged writeback mostly holds bios of many files and owners. Whose a bio is, is known while
 * it merges, in its submitter's context, and kept; when the request completes, each gets its own bytes.
 */
#ifndef LLMIO_MERGING_H
#define LLMIO_MERGING_H

/* Whose a bio is, and who and what that is; share is all zero before. */
SUBPROGRAM int identify_bio(struct share *share, __u64 *address, __u64 now)
{
	struct target target = {};
	struct bio *bio;
	__u32 opf;

	if (!share || !address)
		return 0;
	bio = AS(bio, *address);
	opf = READ(bio, bi_opf);
	if (set_share(share, &target, *address, opf, op_of(opf, READ(bio, bi_iter.bi_size))))
		introduce(bpf_get_current_task());
	if (share->file_device && target.inode)
		see_file(share, target.inode, target.dentry, now);
	return 0;
}

/* A bio became a part of a request. */
static __always_inline int keep_bio(struct bio *bio, bool again)
{
	__u64 key = (__u64)bio;
	struct share share = {};

	if (!control.running || (again && bpf_map_lookup_elem(MAP(bios), &key)))
		return 0;
	identify_bio(&share, &key, bpf_ktime_get_ns());
	bpf_map_update_elem(MAP(bios), &key, &share, BPF_ANY);
	return 0;
}

PROGRAM(block_bio_backmerge, struct bio *bio)
{
	return keep_bio(bio, false);
}

PROGRAM(block_bio_frontmerge, struct bio *bio)
{
	return keep_bio(bio, false);
}

#if !defined(LLMIO_PLAIN)
/* Before 5.11, e8a676d61c07: queue and request came first. */
PROGRAM_AT(2, block_bio_backmerge, void *queue, void *rq, struct bio *bio)
{
	return keep_bio(bio, false);
}

PROGRAM_AT(2, block_bio_frontmerge, void *queue, void *rq, struct bio *bio)
{
	return keep_bio(bio, false);
}
#else
PROGRAM_AGAIN(block_bio_backmerge, struct bio *bio)
{
	return keep_bio(bio, true);
}

PROGRAM_AGAIN(block_bio_frontmerge, struct bio *bio)
{
	return keep_bio(bio, true);
}
#endif

static __always_inline bool same_share(const struct share *a, const struct share *b)
{
	__u64 x[4], y[4];

	/* By words, in one comparison: the verifier goes each way through a round. */
	_Static_assert(sizeof(*a) == sizeof(x), "struct share is as many words");
	__builtin_memcpy(x, a, sizeof(x));
	__builtin_memcpy(y, b, sizeof(y));
	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]) | (x[3] ^ y[3]));
}

/* Bytes that belong to another owner or file than the request. Runs of the same one give one record. */
static SIDE_PATH int emit_part(struct walk *walk)
{
	__u32 bytes = walk->part_bytes, ring = ring_of_cpu();
	struct request_record *record;
	struct place place;

	if (!bytes)
		return 0;
	walk->part_bytes = 0;
	walk->given += bytes;
	record = new_record(&place, ring, &walk->part, walk->device, walk->op);
	if (!record) {
		overflow_part(walk, bytes, ring);
		return 0;
	}
	record->made_ns = 0;
	record->issued_ns = 0;
	record->done_ns = 0;
	record->sector = SECTOR_UNKNOWN;
	record->bytes = bytes;
	record->request_bytes = 0;
	record->requeues = 0;
	record->hw_queue = 0;
	record->flags |= REQUEST_PART | (walk->flags & ~REQUEST_SHARED);
	record->status = 0;
	commit(&place);
	return 0;
}

static __always_inline void add_part(struct walk *walk, const struct share *share, __u32 bytes)
{
	if (!same_share(share, &walk->part)) {
		emit_part(walk);
		walk->part = *share;
	}
	walk->part_bytes += bytes;
}

/* One bio more; true if there is nothing left to give. */
static __always_inline bool share_out_bio(struct walk *walk)
{
	struct bio *bio = AS(bio, walk->bio);
	__u32 size = READ(bio, bi_iter.bi_size), bytes = size < walk->bytes ? size : walk->bytes;
	struct share own = {}, *kept;
	__u64 key = walk->bio;

	if (key != walk->first) {
		kept = bpf_map_lookup_elem(MAP(bios), &key);
		if (kept)
			own = *kept;
		if (!same_share(&own, &walk->own))
			add_part(walk, &own, bytes);
		if (bytes == size)
			bpf_map_delete_elem(MAP(bios), &key);
	}
	walk->bytes -= bytes;
	walk->bio = (__u64)READ(bio, bi_next);
	return !walk->bio || !walk->bytes;
}

#if defined(LLMIO_PLAIN)

static long share_out_round(__u32 index, struct walk *walk)
{
	return share_out_bio(walk);
}

static __always_inline void share_out_all(struct walk *walk)
{
	bpf_loop(REQUEST_BIOS_MAX, share_out_round, walk, 0);
}

#else

GLOBAL int share_out_round(__u32 level)
{
	struct walk *walk = bpf_map_lookup_elem(MAP(walks), &level);

	return !walk || share_out_bio(walk);
}

/* Interrupts may share out on top of each other. */
static __always_inline void share_out_all(struct walk *walk)
{
	__u32 first = 0, level;
	struct walk *kept = bpf_map_lookup_elem(MAP(walks), &first);

	if (!kept)
		return;
	level = kept->level + 1;
	if (level >= WALK_LEVELS)
		return;
	kept->level = level;
	bpf_map_update_elem(MAP(walks), &level, walk, BPF_ANY);
#if defined(LLMIO_BCC)
	kept = bpf_map_lookup_elem(MAP(walks), &level);
	if (kept)
		for (int i = 0; i < REQUEST_BIOS_MAX; i++)
			if (share_out_bio(kept))
				break;
#else
	for (int i = 0; i < REQUEST_BIOS_MAX; i++)
		if (share_out_round(level))
			break;
	kept = bpf_map_lookup_elem(MAP(walks), &level);
#endif
	if (kept)
		*walk = *kept;
	kept = bpf_map_lookup_elem(MAP(walks), &first);
	if (kept)
		kept->level = level - 1;
}

#endif

/*
 * Several bios, of several owners or files perhaps: each gets its own. There are no more of them than segments in a
 * request, which drivers limit to less than REQUEST_BIOS_MAX.
 */
SUBPROGRAM int share_out(struct request_entry *entry, __u64 bio, __u32 bytes)
{
	struct share nobody = {};
	struct walk walk = {};

	if (!entry)
		return 0;
	walk.bio = bio;
	walk.first = entry->bio;
	walk.own = entry->share;
	walk.bytes = bytes;
	walk.device = entry->device;
	walk.flags = entry->flags;
	walk.op = entry->op;
	share_out_all(&walk);
	if (walk.bytes) /* more than can be walked */
		add_part(&walk, &nobody, walk.bytes);
	emit_part(&walk);
	entry->part_bytes += walk.given;
	return 0;
}

#endif
