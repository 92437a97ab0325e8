/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The life of a request: made (block_io_start), issued, merged away or completed; one record when it has finished.
 *
 * Every start is counted and ends as exactly one of finished, merged, expired or still in flight. A completion without
 * a start (a flush, one in flight when the programs attached) gives a record too, with an unknown owner.
 */
#ifndef LLMIO_REQUESTS_H
#define LLMIO_REQUESTS_H

/*
 * When a request is made, that is now. Of a bio's the block layer has just looked at the clock, which costs 30 ns; not where
 * it keeps no statistics, and while a task is plugged only once for many (since 6.9).
 */
static __always_inline __u64 made_at(struct request *rq, __u32 cmd_flags)
{
	struct task_struct *task = AS(task_struct, bpf_get_current_task());
	__u64 stamp = READ(rq, start_time_ns);

	if (!stamp || (cmd_flags & REQ_OP_MASK) > REQ_OP_WRITE || READ(task, plug))
		stamp = bpf_ktime_get_ns();
	return stamp;
}

/* Not what is in flight in it since the last time, whose completion was not seen. */
static __always_inline bool is_begun(const struct request_entry *entry, struct request *rq, __u64 bio)
{
	return entry->in_flight == STARTED && entry->bio == bio && entry->made_ns >= READ(rq, start_time_ns);
}

static __always_inline int start(struct request *rq, bool again)
{
	__u32 cmd_flags = READ(rq, cmd_flags), epoch;
	struct target target = {};
	struct share share = {};
	struct request_entry *entry;
	struct device_counts *counts;
	__u64 now, bio = WORD(request, rq, bio);
	bool same;

	if (!control.running)
		return 0;
	entry = kept_entry(number_of(rq));
	if (again && (!entry || is_begun(entry, rq, bio)))
		return 0;
	now = made_at(rq, cmd_flags);
	if (!entry) {
		/* It will complete without a start, as nobody's. */
		control.table_full = 1;
		counts = counts_of(claim_slot(device_of(rq)));
		if (counts)
			counts->untracked++;
		return 0;
	}
	begin(entry, rq, cmd_flags);
	/* The kept entry remembers whom and what it introduced last, so mostly no map is asked. */
	epoch = set_share(&share, &target, bio, cmd_flags, entry->op) ? control.seen_epoch : 0;
	same = same_share(&share, &entry->share);
	if (epoch && (!same || entry->seen_epoch != epoch) && !introduce(bpf_get_current_task()))
		epoch = 0;
	if (share.file_device && target.inode && (!same || entry->made_ns >> FILE_PERIOD_SHIFT != now >> FILE_PERIOD_SHIFT))
		see_file(&share, target.inode, target.dentry, now);
	if (!same)
		entry->share = share;
	if (entry->seen_epoch != epoch)
		entry->seen_epoch = epoch;
	entry->bio = bio;
	entry->made_ns = now;
	entry->in_flight = STARTED;
	counts = counts_of(entry->slot);
	if (counts)
		counts->started++;
	return 0;
}

/* Since 6.5, and in some distributions' kernels before: in the submitter's context, with the request. */
PROGRAM(block_io_start, struct request *rq)
{
	return start(rq, false);
}

static __always_inline int issue(struct request *rq, bool again)
{
	struct request_entry *entry;
	struct bio *bio;

	if (!control.running)
		return 0;
	entry = kept_entry(number_of(rq));
	if (!entry || (again && entry->in_flight != IDLE && entry->issued_ns))
		return 0;
	/* The block layer's flush requests never start: each issue is a new one. */
	if (!start_from_bio(entry, rq) &&
	    (entry->in_flight == IDLE || (entry->in_flight == UNSTARTED && entry->op == OP_FLUSH)))
		begin_unstarted(entry, rq);
	bio = READ(rq, bio);
	entry->issued_ns = bpf_ktime_get_ns();
	entry->issued_bytes = entry->bytes + READ(rq, __data_len);
	entry->merged = (__u64)bio != entry->bio || (bio && READ(bio, bi_next));
	entry->issues++;
	return 0;
}

PROGRAM(block_rq_issue, struct request *rq)
{
	return issue(rq, false);
}

/* The request became a part of another one, which completes for both. */
static __always_inline int merge(struct request *rq)
{
	struct request_entry *entry;
	struct device_counts *counts;

	if (!control.running)
		return 0;
	entry = find_entry(number_of(rq));
	if (merge_unissued(entry, rq) || !entry)
		return 0;
	if (entry->in_flight == STARTED) {
		counts = counts_of(entry->slot);
		if (counts)
			counts->merged++;
		if (entry->bio) /* the other one has it now */
			bpf_map_update_elem(MAP(bios), &entry->bio, &entry->share, BPF_ANY);
	}
	entry->in_flight = IDLE;
	return 0;
}

PROGRAM(block_rq_merge, struct request *rq)
{
	return merge(rq);
}

#if !defined(LLMIO_PLAIN)
/* Before 5.11, a54895fa057c: the queue came first. */
PROGRAM_AT(1, block_rq_issue, void *queue, struct request *rq)
{
	return issue(rq, false);
}

PROGRAM_AT(1, block_rq_merge, void *queue, struct request *rq)
{
	return merge(rq);
}
#else
PROGRAM_AGAIN(block_io_start, struct request *rq)
{
	return start(rq, true);
}

/* Not that it was issued once more. */
PROGRAM_AGAIN(block_rq_issue, struct request *rq)
{
	return issue(rq, true);
}

PROGRAM_AGAIN(block_rq_merge, struct request *rq)
{
	return merge(rq);
}
#endif

static __always_inline void finish(struct request_entry *entry, struct request *rq)
{
	struct device_counts *counts = counts_of(entry->slot);

	if (counts) {
		if (entry->in_flight == STARTED) {
			count(&counts->finished);
		} else {
			count(&counts->unowned);
			if (entry->made_ns && entry->made_ns < control.started_ns)
				count(&counts->unowned_at_attach);
		}
	}
	emit(entry, bpf_ktime_get_ns(), READ(rq, __sector), READ(rq, mq_hctx, queue_num));
}

/* With a frame of its own, beside share_out's and not on top of its caller's. */
static SIDE_PATH int finish_alone(struct request_entry *entry, struct request *rq)
{
	finish(entry, rq);
	return 0;
}

/* Nobody saw it begin, or there was no room. Nothing has to be remembered of it; what completes in parts counts as many. */
static SIDE_PATH int complete_alone(struct request *rq, int error, __u32 bytes)
{
	struct request_entry entry = {};

	begin_unstarted(&entry, rq);
	if (moves_data(entry.op))
		share_out(&entry, WORD(request, rq, bio), bytes);
	entry.bytes = bytes;
	entry.status = status_of(error);
	finish_alone(&entry, rq);
	return 0;
}

/* Fires before the request is advanced: __data_len and __sector are still those of what remains. */
static __always_inline int complete_request(struct request *rq, int error, __u32 bytes, bool again)
{
	struct request_entry *entry;
	__u64 key = number_of(rq), bio = WORD(request, rq, bio);
	__u32 left;

	if (!control.running)
		return 0;
	entry = find_entry(key);
	/* What completes in parts, or never began, tells nothing of whether it has been counted. */
	if (again && (!entry || entry->in_flight == IDLE || bytes < READ(rq, __data_len)))
		return 0;
	if ((!entry || entry->in_flight == IDLE) && !start_unissued(&entry, rq)) {
		/* Empty: the second completion of a write with a preflush or FUA. */
		if (bytes)
			complete_alone(rq, error, bytes);
		return 0;
	}
	if (!entry)
		return 0;
	if (bio && (bio != entry->bio || READ(rq, bio, bi_next)) && moves_data(entry->op))
		share_out(entry, bio, bytes);
	left = READ(rq, __data_len);
	entry->bytes += bytes;
	/* With 0 bytes and some left, SCSI says why it tries again. */
	if (!entry->status && (bytes || !left))
		entry->status = status_of(error);
	if (bytes < left)
		return 0;
	finish(entry, rq);
	entry->in_flight = IDLE;
	if (control.table_full)
		bpf_map_delete_elem(MAP(displaced_requests), &key); /* its place in the array, it keeps */
	return 0;
}

PROGRAM(block_rq_complete, struct request *rq, int error, unsigned int bytes)
{
	return complete_request(rq, error, bytes, false);
}

#if defined(LLMIO_PLAIN)
/* In a task, too: who polls completes there. */
PROGRAM_AGAIN(block_rq_complete, struct request *rq, int error, unsigned int bytes)
{
	return complete_request(rq, error, bytes, true);
}
#endif

#endif
