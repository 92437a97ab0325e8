/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What crosses from the kernel to user space: the record layouts, the ids in them, and nothing else.
 *
 * This is the one place where they are written. llmio_probe/kernel/records.py names the same fields as
 * NumPy dtypes, and the loader compares the two through the object's BTF before it attaches anything.
 *
 * Every struct is naturally aligned and free of holes; times are CLOCK_MONOTONIC nanoseconds unless
 * named start (CLOCK_BOOTTIME, what /proc/PID/stat counts in ticks); 0 means unknown.
 */
#ifndef LLMIO_RECORD_H
#define LLMIO_RECORD_H

#define COMM_LENGTH 16 /* TASK_COMM_LEN */

enum op {
	OP_READ,
	OP_WRITE,
	OP_DISCARD, /* write_zeroes and secure erase too: no data bytes */
	OP_FLUSH,
	OP_PASSTHROUGH,
	OP_OTHER,
};

enum engine {
	ENGINE_UNKNOWN,
	ENGINE_LIBAIO,
	ENGINE_IO_URING,
	ENGINE_POSIX,
	ENGINE_MMAP,
	ENGINE_KERNEL,
};

enum io_path { /* not path: the kernel has a struct of that name */
	PATH_UNKNOWN,
	PATH_DIRECT,
	PATH_PAGE_CACHE,
	PATH_WRITEBACK,
	PATH_SWAP,
};

enum owner_kind {
	OWNER_UNKNOWN,
	OWNER_PROCESS,
	OWNER_KERNEL, /* tgid is the kernel thread's, or 0 */
};

enum request_flag {
	REQUEST_READAHEAD = 1,
	REQUEST_SYNC = 2,
	REQUEST_METADATA = 4,
	REQUEST_FUA = 8,
	REQUEST_UNSTARTED = 16, /* completed, but its start was not seen */
	REQUEST_EXPIRED = 32,	/* its struct request began anew, its completion was not seen: done_ns is 0 */
	REQUEST_PART = 64,	/* no request of its own: bytes of one that belong to another owner or file */
	REQUEST_SHARED = 128,	/* written back for a file that several processes had dirtied: its last writer is named */
};

/*
 * One finished request, or a part of one. 88 bytes: with what a ring puts in front 96.
 *
 * A request has the owner and file of the bio that it was made for. Bios of others that merged into it give part records,
 * written before its own: owner, file, op, engine, path and bytes, no times.
 */
struct request_record {
	__u64 made_ns;	 /* block_io_start; for an unstarted one the block layer's own stamp, or 0 */
	__u64 issued_ns; /* last block_rq_issue, 0 when none was seen */
	__u64 done_ns;
	__u64 sector; /* 512 bytes each; all ones when unknown */
	__u64 owner_start_ns;
	__u64 inode; /* 0: no file is known */
	__u32 inode_generation;
	__u32 file_device; /* what stat calls st_dev, major << 20 | minor; 0: a raw block device, whose own number is inode */
	__u32 device;	   /* the whole disk: major << 20 | minor */
	__u32 bytes;	   /* of this owner and file: request_bytes less its part records' */
	__u32 request_bytes; /* completed, summed over partial completions; 0 in a part record */
	__u32 tgid;
	__u16 requeues; /* issues beyond the first */
	__u16 hw_queue;
	__u16 flags; /* enum request_flag */
	__u8 op;     /* enum op */
	__u8 status; /* blk_status_t, the first that was not 0 */
	__u8 engine; /* enum engine */
	__u8 path;   /* enum io_path */
	__u8 owner;  /* enum owner_kind */
	__u8 reserved[5];
};

/* Where a record lies in a ring of slots (rings.h). */
struct request_slot {
	__u64 written; /* its number + 1, from when it is whole */
	struct request_record record;
};

/* How far a ring of slots is used. A cache line for what the kernel changes, and one for the reader. */
struct ring_position {
	__u64 reserved; /* records so far, of which the last ones may not be written yet */
	__u8 reserved_line[56];
	__u64 released; /* records of which the reader has given the slots back */
	__u8 released_line[56];
};

enum process_flag {
	PROCESS_KERNEL_THREAD = 1,
	PROCESS_FOLLOWED = 2, /* belongs to the session: asked for, or a descendant of one asked for */
};

/* A process at its first request, and again at the first one after an exec. */
struct process_record {
	__u64 time_ns;
	__u64 start_ns;
	__u64 parent_start_ns;
	__u32 tgid;
	__u32 parent_tgid;
	__u32 flags; /* enum process_flag */
	__u32 reserved;
	char comm[COMM_LENGTH];
};

enum file_flag {
	FILE_DELETED = 1,  /* no name leads to it any more */
	FILE_NAMELESS = 2, /* the kernel remembered no name: path is empty */
	FILE_CUT = 4,	   /* deeper or longer than what is read: path lacks its beginning */
};

#define FILE_PATH_MAX 4096 /* PATH_MAX */

/*
 * A file at the first request for it, or when its name has changed. Behind it path_bytes of names, from the file up to
 * its filesystem's root, each with its NUL.
 */
struct file_record {
	__u64 time_ns;
	__u64 inode;
	__u64 owner_start_ns; /* of the process through which it was seen, whose mount namespace may name it otherwise */
	__u64 size; /* bytes, at that moment */
	__u32 inode_generation;
	__u32 file_device;
	__u32 mount_device; /* s_dev of its filesystem, what mountinfo shows; on btrfs not its file_device */
	__u32 tgid;
	__u32 flags; /* enum file_flag */
	__u32 path_bytes;
};

/* The one bucket rule: bucket n holds (2^(n-1), 2^n]. These are the n of the first and the last bucket; more is in +Inf. */
enum bucket_edge {
	BUCKET_SIZE_FIRST = 9, /* bytes */
	BUCKET_SIZE_LAST = 31,
	BUCKET_LATENCY_FIRST = 10, /* nanoseconds */
	BUCKET_LATENCY_LAST = 35,
	BUCKET_CALL_FIRST = 0, /* requests a call */
	BUCKET_CALL_LAST = 12,
};

#define SIZE_BUCKETS (BUCKET_SIZE_LAST - BUCKET_SIZE_FIRST + 2)
#define LATENCY_BUCKETS (BUCKET_LATENCY_LAST - BUCKET_LATENCY_FIRST + 2)
#define CALL_BUCKETS (BUCKET_CALL_LAST - BUCKET_CALL_FIRST + 2)
#define OPS (OP_OTHER + 1)

/* Per device and CPU: started = finished + merged + in flight + expired, summed over CPUs. */
struct device_counts {
	__u64 started;
	__u64 finished;
	__u64 merged;
	__u64 expired;	/* begun anew without a completion having been seen */
	__u64 unowned;	/* completed without a start: flushes, in flight at attach, untracked */
	__u64 unowned_at_attach; /* of them, made before the probe ran */
	__u64 untracked; /* starts that found no room in the request table */
	__u64 lost_requests[OPS]; /* finished, and of which nothing else is known: overflowed, and no room there either */
	__u64 lost_bytes[OPS];
	__u64 lost_request_bytes[OPS]; /* whole requests', though parts of them may be known */
};

/* What found no room, per CPU: in its ring, in the tables, or not even there. */
struct ring_losses {
	__u64 overflowed_requests;
	__u64 lost_records; /* of requests and parts: in device_counts */
	__u64 lost_calls;
	__u64 processes; /* tried again at the next request of that process */
	__u64 files;	 /* tried again at the next request for that file */
};

/*
 * The switch between loader and programs. Programs attach and detach one by one; with `running` they all start and stop
 * counting at the same moment, so that the counts add up.
 */
struct control {
	__u64 started_ns; /* when running was set: what was made earlier was in flight at attach */
	__u64 followed_full; /* forks that found no room in `followed` */
	__u32 running;
	__u32 seen_epoch; /* starts at 1; entries introduced in an earlier epoch look into `seen` again */
	__u32 woken; /* a wake-up for a ring of requests is under way; cleared by the reader */
	__u32 table_full; /* a start found no room in displaced_requests: from now on they go when they complete */
	__u32 writers_epoch; /* starts at 1; counts changes in `writers` */
	__u32 registers_offset; /* where a task's stack holds its saved registers; 0 until it was found out */
	__u32 requests_mask; /* of indexes into `requests` */
	__u32 slots_taken; /* of device_counts, apart from slot 0 */
	__u32 page_bytes;
	__u32 starts_with_bio; /* no block_io_start: a request is made from a bio that block_getrq has seen */
	__u32 rings_mask; /* of CPU numbers: which ring is a CPU's */
	__u32 ring_slots; /* of each ring of requests, a power of two */
	__u32 ring_bytes; /* of each, where they are BPF ring buffers */
	__u32 overflowed; /* the overflow table, or device_counts.lost, has changed; cleared by the reader before it looks */
	__u32 called;	  /* the same of call_totals */
	__u32 reserved;
};

#define USER_TICK_NS 10000000ULL /* USER_HZ, the unit of /proc/PID/stat, is 100 on x86-64 and arm64 */

/* Whom bytes belong to, and which file. All zero: nobody and nothing is known. */
struct share {
	__u64 owner_start_ns;
	__u64 inode;
	__u32 inode_generation;
	__u32 file_device;
	__u32 tgid;
	__u8 engine;
	__u8 path;
	__u8 owner;
	__u8 shared; /* several processes had dirtied the file when it was written back */
};

/* What is the same in all requests, or parts of requests, that were added up because a ring was full. */
struct overflow_key {
	struct share share;
	__u32 device;
	__u16 flags; /* enum request_flag: those that tell whose bytes they are */
	__u8 op;
	__u8 status;
	__u32 ring; /* by which its CPUs keep out of each other's way */
	__u32 reserved;
};

/* Totals since the programs were attached; never reset. Buckets count modulo 2^32: their reader takes differences. */
struct overflow_totals {
	__u64 requests; /* or parts */
	__u64 bytes;
	__u64 request_bytes;
	__u64 requeues;
	__u64 queue_ns;
	__u64 device_ns;
	__u64 total_ns;
	__u64 done_ns; /* of the last one, about */
	__u32 size_counts[SIZE_BUCKETS];
	__u32 queue_counts[LATENCY_BUCKETS];
	__u32 device_counts[LATENCY_BUCKETS];
	__u32 total_counts[LATENCY_BUCKETS];
	__u32 reserved;
};

/* Calls of the same process by the same engine; ring: by which its CPUs keep out of each other's way. */
struct call_key {
	__u64 owner_start_ns;
	__u32 tgid;
	__u32 ring;
	__u8 engine;
	__u8 reserved[7];
};

enum call_op {
	CALL_READS,
	CALL_WRITES,
	CALL_OTHERS, /* requests of another op, or none at all */
	CALL_OPS,
};

/*
 * What io_submit, io_getevents, io_pgetevents and io_uring_enter were asked for and how long they took, since the first of
 * them; never reset. Buckets count modulo 2^32: their reader takes differences. An SQPOLL thread takes requests without a call.
 */
struct call_totals {
	__u64 calls[CALL_OPS]; /* that handed over requests of that op */
	__u64 requests[CALL_OPS]; /* accepted by the kernel */
	__u64 submit_ns[CALL_OPS]; /* a call's, shared out by its requests */
	__u64 parts[CALL_OPS]; /* calls of which not all bytes could be read */
	__u64 polled; /* requests without a call */
	__u64 read_bytes;
	__u64 write_bytes;
	__u64 reaped; /* completions returned, libaio only */
	__u64 wait_ns;
	__u32 request_counts[CALL_BUCKETS]; /* requests a call that hands over */
	__u32 submit_counts[LATENCY_BUCKETS];
	__u32 wait_counts[LATENCY_BUCKETS]; /* of calls that wait */
};

/* Before 6.5: a bio that is about to be made into a request, until that is issued. */
struct made_bio {
	struct share share;
	__u64 made_ns;
	__u32 device;
	__u32 cmd_flags;
	__u16 slot; /* of the device, in device_counts */
	__u8 op;
	__u8 reserved[5];
};

/*
 * A request between its start and its completion; kept afterwards, since blk-mq uses each struct request again. Two cache
 * lines, of which only the first goes from the CPU that asks to the one that completes, and back: the second is written
 * when it differs from what the last request left there.
 */
struct request_entry {
	__u64 request; /* which one, by its address; 0: nobody's */
	__u64 made_ns;
	__u64 issued_ns;
	__u64 bio; /* the one it was made for, whose share this is; others that merge into it are in `bios` */
	__u32 bytes;
	__u32 part_bytes; /* of them, in part records */
	__u32 issued_bytes; /* what its last issue asked for, and what had completed by then */
	__u16 issues;
	__u16 flags; /* enum request_flag, as asked for: flush sequences change the request's own */
	__u8 op;
	__u8 status;
	__u8 in_flight;
	__u8 merged; /* held more than its own bio when it was issued */
	__u8 reserved[12];
	struct share share;
	__u32 device;
	__u32 seen_epoch; /* of the owner's identity record */
	__u16 slot;	  /* of the device, in device_counts */
	__u8 reserved_line[22];
};

#endif
