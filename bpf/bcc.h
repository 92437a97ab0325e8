/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The words of variant.h, kernel_types.h and the rest when BCC compiles this source on the host: kernel types come from
 * the kernel's headers, and what has changed its shape is told by LINUX_VERSION_CODE, or by the headers themselves.
 *
 * BCC is only the compiler. Maps are made by the loader, which gives their descriptors as LLMIO_FD_name, the addresses
 * of functions as LLMIO_ADDRESS_name. BCC rewrites the main file only, and that includes this and no more, so its own
 * ways with pointers and tables are not met.
 *
 * What no header has is unknown here, unless it has had the same shape in all kernels from 5.10 to 7.3: how btrfs, device
 * mapper and md lead from a bio to a file, who waits for direct I/O that a worker submits, and what a worker works on, so
 * whether it is a loop device's; before 6.0, what io_uring's requests are.
 */
#ifndef LLMIO_BCC_H
#define LLMIO_BCC_H

#include <linux/aio_abi.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/pagemap.h>
#include <linux/ptrace.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/sched/task_stack.h>
#include <linux/uio.h>
#include <linux/version.h>
#include <linux/xarray.h>
#include <trace/events/block.h>
#if __has_include(<linux/io_uring_types.h>) /* since 6.0 */
#include <linux/io_uring_types.h>
#define OPCODE_OF(req) ((int)READ(req, opcode))
#else
struct io_kiocb;
#define OPCODE_OF(req) IORING_UNKNOWN
#endif

#define SINCE(major, minor) (LINUX_VERSION_CODE >= KERNEL_VERSION(major, minor, 0))

#if defined(CONFIG_X86_64)
#undef __TARGET_ARCH_x86
#define __TARGET_ARCH_x86 1
#elif defined(CONFIG_ARM64)
#undef __TARGET_ARCH_arm64
#define __TARGET_ARCH_arm64 1
#endif

/* --- variant.h */

/* BCC has no calls between functions. */
#define GLOBAL static __always_inline
#define SUBPROGRAM static __always_inline
#define SIDE_PATH __always_inline

#define MAP(name) ((void *)bpf_pseudo_fd(1 /* BPF_PSEUDO_MAP_FD */, LLMIO_FD_##name))
#define SYMBOL(name) ((const void *)LLMIO_ADDRESS_##name)
#define OFFSET(type, member) offsetof(struct type, member)
#define OUTER(type, member, address) ((struct type *)((void *)(address) - OFFSET(type, member)))
#define AS(type, pointer) ((struct type *)(pointer))

#undef READ /* the kernel's 0 */
/* By way of bytes, since a member may be const. */
#define READ1(pointer, member)                                                               \
	({                                                                                   \
		typeof(pointer) _pointer = (pointer);                                        \
		union {                                                                      \
			typeof(_pointer->member) value;                                      \
			char bytes[sizeof(_pointer->member)];                                \
		} _read;                                                                     \
		bpf_probe_read_kernel(_read.bytes, sizeof(_read.bytes), &_pointer->member);  \
		_read.value;                                                                 \
	})
#define BPF_CORE_READ READ
#define READ2(pointer, a, b) READ1(READ1(pointer, a), b)
#define READ3(pointer, a, b, c) READ1(READ2(pointer, a, b), c)
#define READ4(pointer, a, b, c, d) READ1(READ3(pointer, a, b, c), d)
#define READ(pointer, ...) COUNTED(__VA_ARGS__, READ4, READ3, READ2, READ1)(pointer, __VA_ARGS__)

/*
 * A program, as BCC finds it: a function of the main file, or one whose definition a macro begins. Its section is how BCC
 * would name it. The loader says by LLMIO_LOADS_name, 1 or 0, whether it wants it.
 */
#define BCC_PROGRAM(name) CHOSEN(LLMIO_LOADS_##name, name)
#define CHOSEN(loads, name) CHOSEN_(loads, name)
#define CHOSEN_(loads, name) CHOSEN_##loads(name)
#define CHOSEN_0(name) static __always_inline __attribute__((unused)) int name
#define CHOSEN_1(name) __attribute__((section(".bpf.fn." #name), used)) int name

/* Arguments are taken from where the tracepoint has them; AT says behind how many others. */
#define PROGRAM(tracepoint, ...)                                                                                   \
	static __always_inline int tracepoint##_body(__VA_ARGS__);                                                 \
	BCC_PROGRAM(tracepoint)(struct bpf_raw_tracepoint_args * ctx)                                              \
	{                                                                                                          \
		const __u64 *args = (const __u64 *)ctx + AT(tracepoint);                                           \
		return tracepoint##_body(ARGUMENTS(__VA_ARGS__));                                                  \
	}                                                                                                          \
	static __always_inline int tracepoint##_body(__VA_ARGS__)
#define ARGUMENTS(...) COUNTED(__VA_ARGS__, ARGUMENTS4, ARGUMENTS3, ARGUMENTS2, ARGUMENTS1)
#define ARGUMENTS1 (void *)args[0]
#define ARGUMENTS2 ARGUMENTS1, (void *)args[1]
#define ARGUMENTS3 ARGUMENTS2, (void *)args[2]
/* The other places of arguments: PROGRAM finds them itself. */
#define PROGRAM_AT(index, tracepoint, ...) \
	static __always_inline __attribute__((unused)) int tracepoint##_unused_at##index(__VA_ARGS__)
#define SYSCALL_PROGRAM(name, context) BCC_PROGRAM(name)(struct context * ctx)

/* Where the wanted arguments begin: by the headers' prototypes, since changes are brought to older kernels, too. */
#define IS(tracepoint, ...) __builtin_types_compatible_p(typeof(trace_##tracepoint), void(__VA_ARGS__))
#define AT(tracepoint) AT_##tracepoint
#define AT_block_io_start 0
#define AT_block_rq_issue (IS(block_rq_issue, struct request *) ? 0 : 1)
#define AT_block_rq_merge (IS(block_rq_merge, struct request *) ? 0 : 1)
#define AT_block_rq_complete 0
#define AT_block_getrq (IS(block_getrq, struct bio *) ? 0 : 1)
#define AT_block_bio_backmerge (IS(block_bio_backmerge, struct bio *) ? 0 : 2)
#define AT_block_bio_frontmerge (IS(block_bio_frontmerge, struct bio *) ? 0 : 2)
#define AT_writeback_dirty_folio 0
#define AT_writeback_dirty_page 0
#define AT_io_uring_submit_req 0
#define AT_io_uring_submit_sqe 0 /* since 5.19; before, OPCODE_OF looks at none */
#define AT_sched_process_fork 0
#define AT_sched_process_exit 0
#define AT_sched_process_exec 0

#pragma GCC diagnostic ignored "-Wint-conversion" /* arguments that are no pointers */

/* --- structs that are in no header */

struct iomap_dio {
	struct kiocb *iocb;
};

struct iomap_dio_simple {
	struct kiocb *iocb;
	size_t size;
	unsigned int dio_flags;
	struct work_struct work;
	struct bio bio ____cacheline_aligned_in_smp;
};

struct bdev_inode {
	struct block_device bdev;
	struct inode vfs_inode;
};

/* Overlays io_kiocb for reads and writes. */
struct io_rw {
	struct kiocb kiocb;
	__u64 addr;
	__u32 len; /* before 5.19, of 64 bits */
};

/* --- kernel_types.h */

#define REQUEST_FLAG(name) (1U << __REQ_##name)
#define HAS_REQUEST_FLAG(name) 1 /* SWAP since 4.19 */
#define REQUEST_OP(name) REQ_OP_##name
#define PAGE_FLAG(name) PG_##name

#define BTRFS_BTREE_INODE 1

static __always_inline struct gendisk *disk_of(struct request *rq)
{
#if SINCE(5, 15)
	return READ(rq, q, disk);
#else
	return READ(rq, rq_disk);
#endif
}

static __always_inline __u32 number_of_disk(struct gendisk *disk)
{
	return (__u32)READ(disk, major) << 20 | (__u32)READ(disk, first_minor);
}

#if SINCE(5, 12)

static __always_inline struct gendisk *disk_of_bio(struct bio *bio)
{
	return READ(bio, bi_bdev, bd_disk);
}

static __always_inline bool goes_to(struct bio *bio, struct block_device *bdev)
{
	return READ(bio, bi_bdev) == bdev;
}

static __always_inline __u32 number_of_target(struct bio *bio)
{
	return READ(bio, bi_bdev, bd_dev);
}

#else

static __always_inline struct gendisk *disk_of_bio(struct bio *bio)
{
	return READ(bio, bi_disk);
}

static __always_inline bool goes_to(struct bio *bio, struct block_device *bdev)
{
	return READ(bio, bi_disk) == READ(bdev, bd_disk);
}

static __always_inline __u32 number_of_target(struct bio *bio)
{
	return number_of_disk(disk_of_bio(bio));
}

#endif

static __always_inline bool is_held(struct block_device *bdev)
{
#if SINCE(6, 5)
	return READ(bdev, bd_holder_ops) != NULL;
#else
	return READ(bdev, bd_super) != NULL;
#endif
}

static __always_inline bool is_held_target(struct bio *bio)
{
#if SINCE(5, 12)
	return is_held(READ(bio, bi_bdev));
#else
	return false;
#endif
}

static __always_inline struct page *head_of(unsigned long address)
{
	struct page *page = AS(page, address);
	unsigned long link = (unsigned long)READ(page, lru.next); /* where compound_head, later compound_info, is, too */

	if (!(link & 1))
		return page;
	return AS(page, link >> 32 == 0xffffffff ? address & link : link - 1);
}

static __always_inline struct dentry *dentry_of_alias(struct hlist_node *alias)
{
#if defined(for_each_alias) /* since that, d_u has no name */
	return OUTER(dentry, d_alias, alias);
#else
	return OUTER(dentry, d_u.d_alias, alias);
#endif
}

static __always_inline const void *work_of(struct task_struct *task)
{
	return NULL;
}

static __always_inline __u64 waiter_of(struct iomap_dio *dio)
{
	return 0;
}

static __always_inline bool has_simple_dio(void)
{
	return SYMBOL(iomap_dio_simple_pool);
}

static __always_inline unsigned long marks_of(struct xa_node *node, int mark)
{
	return READ(node, marks[mark][0]);
}

static __always_inline unsigned long index_of(void *folio)
{
#if SINCE(5, 16)
	return READ((struct folio *)folio, index);
#else
	return READ((struct page *)folio, index);
#endif
}

/* --- syscalls.h: as the kernel's task_pt_regs() */
static __always_inline __u32 find_registers(struct task_struct *task)
{
#if defined(CONFIG_X86_64)
	return THREAD_SIZE - TOP_OF_KERNEL_STACK_PADDING - sizeof(struct pt_regs);
#else
	return THREAD_SIZE - sizeof(struct pt_regs);
#endif
}

/* --- btrfs.h */

static __always_inline __u32 device_of_subvolume(struct inode *inode)
{
	return 0;
}

#define of_btrfs(target, bio, end_io, op) false

/* --- stacked.h: clones of device mapper and md are not followed */

static __always_inline struct bio *above(struct bio *bio, const void *end_io)
{
	return end_io && end_io == SYMBOL(bio_chain_endio) ? READ(bio, bi_private) : NULL;
}

#endif
