/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Request records: what ops are called in them, how they leave. What they say is the callers'. */
#ifndef LLMIO_OUTPUT_H
#define LLMIO_OUTPUT_H

#define SECTOR_UNKNOWN ((__u64)-1)

static __always_inline __u8 op_of(__u32 cmd_flags, __u32 bytes)
{
	__u32 op = cmd_flags & REQ_OP_MASK;

	/* The common ones have had the same number since 4.8. */
	if (op == REQ_OP_READ)
		return OP_READ;
	if (op == REQ_OP_WRITE) {
		/* An empty write with a preflush is how a flush is asked for. */
		if (!bytes && cmd_flags & REQUEST_FLAG(PREFLUSH))
			return OP_FLUSH;
		return OP_WRITE;
	}
	if (op == REQ_OP_FLUSH)
		return OP_FLUSH;
	if (op == REQ_OP_DISCARD || op == REQ_OP_SECURE_ERASE || op == REQ_OP_WRITE_ZEROES)
		return OP_DISCARD;
	if (op == REQUEST_OP(DRV_IN) || op == REQUEST_OP(DRV_OUT))
		return OP_PASSTHROUGH;
	if (op == REQUEST_OP(ZONE_APPEND))
		return OP_WRITE;
	return OP_OTHER;
}

static __always_inline bool moves_data(__u8 op)
{
	return op == OP_READ || op == OP_WRITE;
}

/* A record in the ring of that number, to be committed when it is filled; NULL when there is no room. */
static __always_inline struct request_record *new_record(struct place *place, __u32 ring, const struct share *share,
							 __u32 device, __u8 op)
{
	struct request_record *record = reserve(place, ring);

	if (!record)
		return NULL;
	record->owner_start_ns = share->owner_start_ns;
	record->inode = share->inode;
	record->inode_generation = share->inode_generation;
	record->file_device = share->file_device;
	record->device = device;
	record->tgid = share->tgid;
	record->flags = share->shared ? REQUEST_SHARED : 0;
	record->op = op;
	record->engine = share->engine;
	record->path = share->path;
	record->owner = share->owner;
	__builtin_memset(record->reserved, 0, sizeof(record->reserved));
	return record;
}

#endif
