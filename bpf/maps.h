/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Every map and global of the programs, each size a named constant with its reason. Weak, because each variant brings them
 * and the linker keeps one of each. BCC has none of them: there the loader makes them from the object's.
 */
#ifndef LLMIO_MAPS_H
#define LLMIO_MAPS_H

/*
 * Rings are one for each CPU, or for each few: with 52 CPUs on one BPF ring buffer the kernel's own benchmark falls from 11
 * to 2 M/s. The loader sets their size (loading.py).
 */
#define RINGS_MAX 64
#define PROCESSES_RING_BYTES (256 << 10) /* 4,096 new processes between two reads */
#define FILES_RING_BYTES (1 << 20)	 /* 6,000 files with paths of 100 bytes between two reads */

/*
 * blk-mq takes requests from fixed pools and uses them again, so entries are kept: queues x nr_requests of them, set by
 * the loader from /sys. Each has a place in an array, found by its address without a call; whose place another one holds
 * is in a hash. A pool that is freed (a device removed, a scheduler changed) leaves its entries, and an LRU would make
 * room by dropping what is in flight: so when the hash is full, entries are no longer kept in it.
 */
#define REQUESTS_DEFAULT 16384
/* Disks and their upper layers; the 256th and later share slot 0. */
#define DEVICES_MAX 256
/* Processes that did I/O lately; one that falls out is only introduced again. */
#define SEEN_MAX 8192
/* Processes of a session alive at once; a fork that finds no room is counted. */
#define FOLLOWED_MAX 8192
/* Threads that made calls lately; their entries are kept, since making and deleting one a call costs 400 ns. Not plain's. */
#define CALLS_MAX 8192
/* Files with requests lately; one that falls out is only named again. */
#define FILES_MAX 16384
/* Inodes with dirty pages, or written back lately; of one that falls out before that, the writer is unknown. */
#define WRITERS_MAX 16384
/* Before 6.5, bios whose requests have not been seen yet: no more than there are requests, set by the loader. */
#define MADE_BIOS_MAX 1
/*
 * Owners, files, devices and ops whose requests were added up because rings were full, each for the CPUs of a ring: 4,096
 * at least, and 256 a ring. The loader sets it; entries are never given back.
 */
#define OVERFLOW_MAX 4096
/* Processes and engines that made calls, each for the CPUs of a ring: as many. Given back when a process has ended. */
#define CALL_TOTALS_MAX 4096
/* Bios that merged into requests in flight: 32 MiB of them if each is 4 KiB. Of one that falls out, nothing is known. */
#define BIOS_MAX 8192

struct file_key {
	__u64 inode;
	__u32 generation;
	__u32 device;
};

struct file_seen {
	__u32 period; /* in which its name was looked at last */
	__u32 name;   /* what it was then, as one number */
};

/* A file_record while it is put together: too large for the stack. path ends the record. */
struct file_scratch {
	__u64 busy; /* by what an interrupt came on top of */
	struct file_record record;
	char path[FILE_PATH_MAX];
};

struct process_key {
	__u64 start; /* `seen`: nanoseconds; `followed`: ticks, which is all that /proc tells user space */
	__u64 tgid;  /* 64 bits, so that the key has no hole */
};

/* A thread's call between its entry and its exit; start_ns is 0 outside of one. */
struct call_state {
	__u64 start_ns;
	__u64 submitted_ns;
	__u64 iocbs; /* the user's struct iocb ** */
	__u64 read_bytes;
	__u64 write_bytes;
	__u32 requests;
	__u32 reads;
	__u32 writes;
	__u32 flags;
	__u32 seen_epoch; /* in which the thread's process was introduced */
	__u32 seen_start; /* of that process: a thread's number is used again; low bits, nanoseconds */
	__u32 added;	  /* the request that the first of two programs has added (variant.h) */
	__u32 reserved;
};

/* What a CPU found in `writers` last; good while control.writers_epoch is the same. */
struct last_writer {
	__u64 key; /* struct inode * */
	__u64 inode;
	__u64 start;
	__u32 generation;
	__u32 tgid;
	__u32 epoch;
	__u32 engine;
};

/* A walk over the bios of what has completed, each of which gets its own bytes. */
struct walk {
	__u64 bio;
	__u64 first; /* bio: the one that the request was made for, whose share this is: */
	struct share own;
	__u32 bytes;	  /* completed, and not given to anybody yet */
	__u32 given;	  /* to others than own */
	__u32 part_bytes; /* of part, not given yet */
	__u32 device;
	struct share part;
	__u32 level; /* of the first: how many are under way on this CPU */
	__u16 flags;
	__u8 op;
	__u8 reserved;
};

/* Completions on top of each other, on one CPU: of a process, a soft and a hard interrupt. The first counts them. */
#define WALK_LEVELS 4

#if !defined(LLMIO_BCC)

#if defined(LLMIO_PLAIN)

/* rings.h: ring by ring. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, struct request_slot);
} request_slots SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, RINGS_MAX);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32); /* CPU & control.rings_mask */
	__type(value, struct ring_position);
} ring_positions SEC(".maps") __weak;

#else

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, RINGS_MAX);
	__uint(key_size, sizeof(__u32)); /* CPU & control.rings_mask */
	__uint(value_size, sizeof(__u32));
} requests_rings SEC(".maps") __weak;

#endif

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, OVERFLOW_MAX);
	__type(key, struct overflow_key);
	__type(value, struct overflow_totals);
} overflow SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, CALL_TOTALS_MAX);
	__type(key, struct call_key);
	__type(value, struct call_totals);
} call_totals SEC(".maps") __weak;

/* What an entry of either starts as: too large for the stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct overflow_totals);
} nothing SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, PROCESSES_RING_BYTES);
} processes_ring SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, FILES_RING_BYTES);
} files_ring SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, REQUESTS_DEFAULT); /* a power of two */
	__uint(map_flags, BPF_F_MMAPABLE);     /* begins at a page's begin, so that entries are whole cache lines */
	__type(key, __u32);
	__type(value, struct request_entry);
} requests SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, REQUESTS_DEFAULT);
	__type(key, __u64); /* request_entry.request */
	__type(value, struct request_entry);
} displaced_requests SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DEVICES_MAX);
	__type(key, __u32); /* device */
	__type(value, __u32); /* slot */
} device_slots SEC(".maps") __weak;

/* The other way round: who takes a slot first has it, without fetching atomics, which came with 5.12. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, DEVICES_MAX);
	__type(key, __u32); /* slot */
	__type(value, __u32); /* device */
} slot_devices SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, DEVICES_MAX);
	__type(key, __u32); /* slot */
	__type(value, struct device_counts);
} device_counts SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct ring_losses);
} ring_losses SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, SEEN_MAX);
	__type(key, struct process_key);
	__type(value, __u32);
} seen SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, FOLLOWED_MAX);
	__type(key, struct process_key);
	__type(value, __u32);
} followed SEC(".maps") __weak;

#if defined(LLMIO_PLAIN)
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct call_state);
} call_states SEC(".maps") __weak;
#else
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, CALLS_MAX);
	__type(key, __u32); /* thread */
	__type(value, struct call_state);
} calls SEC(".maps") __weak;
#endif

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, FILES_MAX);
	__type(key, struct file_key);
	__type(value, struct file_seen);
} files SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct file_scratch);
} file_scratch SEC(".maps") __weak;

/* The last process to dirty a clean page of an inode: owner, engine, and the file it was, since inodes are used again. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, WRITERS_MAX);
	__type(key, __u64); /* struct inode * */
	__type(value, struct share);
} writers SEC(".maps") __weak;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct last_writer);
} last_writers SEC(".maps") __weak;

/* Bios from block_getrq on, until their requests are issued. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MADE_BIOS_MAX);
	__type(key, __u64); /* struct bio * */
	__type(value, struct made_bio);
} made_bios SEC(".maps") __weak;

/* Bios that merged into a request, until it completes. LRU, since a completion that was not seen leaves its own behind. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, BIOS_MAX);
	__type(key, __u64); /* struct bio * */
	__type(value, struct share);
} bios SEC(".maps") __weak;

#if !defined(LLMIO_PLAIN)
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, WALK_LEVELS);
	__type(key, __u32);
	__type(value, struct walk);
} walks SEC(".maps") __weak;
#endif

/* Shared with the loader, which maps this section; the only global that is written. */
struct control control SEC(".data.control") __weak = {
	.seen_epoch = 1,
	.writers_epoch = 1,
	.requests_mask = REQUESTS_DEFAULT - 1,
};

#else

#define control (*(struct control *)bpf_pseudo_fd(2 /* BPF_PSEUDO_MAP_VALUE */, LLMIO_FD_control))

#endif

static __always_inline struct ring_losses *losses(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(MAP(ring_losses), &zero);
}

#endif
