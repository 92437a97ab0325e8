/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The few kernel types that the programs read, with only the members that they read.
 *
 * preserve_access_index makes every access a CO-RE relocation: libbpf looks the member up by name in the running
 * kernel's BTF, so offsets here mean nothing and order is free. A type or member that only some kernels have carries
 * the version that changed it; what is behind three underscores in a type's name is not part of it. BCC has the kernel's
 * headers instead (bcc.h).
 */
#ifndef LLMIO_KERNEL_TYPES_H
#define LLMIO_KERNEL_TYPES_H

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct hlist_bl_node {
	struct hlist_bl_node **pprev;
};

struct qstr {
	__u32 hash;
	const unsigned char *name;
};

struct dentry {
	struct hlist_bl_node d_hash;
	struct dentry *d_parent;
	struct qstr d_name;
	union {
		struct hlist_node d_alias;
	} d_u;
};

struct gendisk {
	int major;
	int first_minor;
	int flags;
	void *private_data;
};

struct dentry___in_7 {
	struct hlist_node d_alias;
};

struct block_device {
	__u32 bd_dev;
	struct gendisk *bd_disk;
	const void *bd_holder_ops; /* since 6.5 */
};

struct block_device___before_6_5 {
	struct super_block *bd_super;
};

struct super_block {
	__u32 s_dev;
	unsigned long s_magic;
	struct dentry *s_root;
	struct block_device *s_bdev;
};

struct address_space;

struct inode {
	__u16 i_mode;
	struct super_block *i_sb;
	struct address_space *i_mapping;
	unsigned long i_ino;
	unsigned int i_nlink;
	__s64 i_size;
	__u32 i_generation;
	struct hlist_head i_dentry;
};

/* What the block layer's own inodes lie in. */
struct bdev_inode {
	struct block_device bdev;
	struct inode vfs_inode;
};

struct xarray {
	void *xa_head;
};

/* marks: a bit for each slot, of which there are 64 but on small devices (CONFIG_BASE_SMALL): dirty, writeback. */
struct xa_node {
	unsigned char shift;
	void *slots[64];
	unsigned long marks[3];
};

struct address_space {
	struct inode *host;
	struct xarray i_pages;
};

struct page {
	struct address_space *mapping;
	unsigned long index; /* read before 5.16, where there is no folio */
	unsigned long compound_head;
};

struct page___in_7 {
	unsigned long compound_info;
};

struct folio { /* since 5.16 */
	unsigned long index;
};

struct path {
	struct dentry *dentry;
};

struct file {
	struct path f_path;
	struct inode *f_inode;
};

struct kiocb {
	struct file *ki_filp;
	void *ki_complete;
};

struct task_struct;

struct iomap_dio_submit {
	struct task_struct *waiter;
};

struct iomap_dio {
	struct kiocb *iocb;
	_Bool wait_for_completion;
	struct iomap_dio_submit submit;
};

struct bio_vec {
	struct page *bv_page;
};

struct bvec_iter {
	unsigned int bi_size;
};

struct bio {
	struct bio *bi_next;
	struct block_device *bi_bdev; /* since 5.12 */
	__u32 bi_opf;
	struct bvec_iter bi_iter;
	struct bio_vec *bi_io_vec;
	void *bi_end_io;
	void *bi_private;
	void *bi_pool;
};

struct bio___before_5_12 {
	struct gendisk *bi_disk;
};

struct iomap_dio_simple { /* since 7.x */
	struct kiocb *iocb;
	struct bio bio;
};

/* btrfs: often a module, whose types are in a BTF of their own. */
struct btrfs_root {
	__u32 anon_dev;
};

struct btrfs_inode {
	struct btrfs_root *root;
	struct inode vfs_inode;
};

struct btrfs_bio {
	struct btrfs_inode *inode;
	void *end_io;
	void *private;
	struct bio bio;
};

struct btrfs_io_context {
	struct bio *orig_bio;
};

struct btrfs_io_stripe {
	struct btrfs_io_context *bioc;
};

/* Device mapper and md: modules mostly. */
struct dm_io {
	struct bio *orig_bio;
};

struct dm_target_io {
	struct dm_io *io;
	struct bio clone;
};

struct md_io_clone {
	struct bio *orig_bio;
	struct bio bio_clone;
};

struct md_io_acct {
	struct bio *orig_bio;
};

/* NVMe's native multipath, a module mostly. */
struct nvme_ns_head {
	struct gendisk *disk;
};

struct nvme_ns {
	struct nvme_ns_head *head;
};

struct request_queue {
	struct gendisk *disk; /* since 5.15 */
};

struct blk_mq_hw_ctx {
	unsigned int queue_num;
};

struct request {
	struct request_queue *q;
	struct blk_mq_hw_ctx *mq_hctx;
	unsigned int cmd_flags;
	unsigned int __data_len;
	__u64 __sector;
	struct bio *bio;
	__u64 start_time_ns;
};

struct request___before_5_17 {
	struct gendisk *rq_disk;
};

struct signal_live {
	int counter;
};

struct signal_struct {
	struct signal_live live;
};

struct vm_struct {
	unsigned int nr_pages;
};

struct task_struct {
	struct vm_struct *stack_vm_area;
	unsigned int flags;
	int pid;
	int tgid;
	__u64 start_boottime; /* since 5.5 */
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct signal_struct *signal;
	struct blk_plug *plug;
	void *worker_private; /* of a kernel thread: struct kthread, since 5.17 */
	void *stack;
	char comm[COMM_LENGTH];
};

struct task_struct___before_5_17 {
	int *set_child_tid; /* of a kernel thread: struct kthread */
};

struct kthread {
	void *data;
};

struct worker {
	void *current_func;
};

struct pt_regs {
#if defined(__TARGET_ARCH_x86)
	unsigned long orig_ax;
	unsigned long si;
	unsigned long dx;
	unsigned long r10;
#elif defined(__TARGET_ARCH_arm64)
	int syscallno;
	__u64 regs[31];
#endif
};

enum pageflags {
	PG_writeback = 1,
};

struct io_kiocb {
	__u8 opcode;
};

/* Overlays io_kiocb for reads and writes. */
struct io_rw {
	__u64 addr;
	__u32 len;
};

struct timespec64 {
	__s64 tv_sec;
};

/* Values are relocated too: the numbers of these bits moved in 5.x and 6.x. */
enum req_flag_bits {
	__REQ_SYNC = 11,
	__REQ_META = 12,
	__REQ_FUA = 17,
	__REQ_PREFLUSH = 18,
	__REQ_RAHEAD = 19,
	__REQ_SWAP = 24,
};

enum req_op {
	REQ_OP_READ = 0,
	REQ_OP_WRITE = 1,
	REQ_OP_FLUSH = 2,
	REQ_OP_DISCARD = 3,
	REQ_OP_SECURE_ERASE = 5,
	REQ_OP_ZONE_APPEND = 7,
	REQ_OP_WRITE_ZEROES = 9,
	REQ_OP_DRV_IN = 34,
	REQ_OP_DRV_OUT = 35,
};

/* Before 6.0 these were called enum req_opf. */
enum req_opf {
	REQ_OP_ZONE_APPEND___before_6_0 = 13,
	REQ_OP_DRV_IN___before_6_0 = 34,
	REQ_OP_DRV_OUT___before_6_0 = 35,
};

#pragma clang attribute pop

/* Numbers of a kernel's enums. */
#define REQUEST_FLAG(name) (1U << bpf_core_enum_value(enum req_flag_bits, __REQ_##name))
#define HAS_REQUEST_FLAG(name) bpf_core_enum_value_exists(enum req_flag_bits, __REQ_##name)
#define REQUEST_OP(name)                                                                                              \
	(bpf_core_enum_value_exists(enum req_op, REQ_OP_##name) ?                                                     \
		 bpf_core_enum_value(enum req_op, REQ_OP_##name) :                                                    \
		 bpf_core_enum_value(enum req_opf, REQ_OP_##name##___before_6_0))

#define PAGE_FLAG(name) bpf_core_enum_value(enum pageflags, PG_##name)

#define OPCODE_OF(req) ((int)READ(req, opcode))

/* --- what has changed its shape; BCC's own ones are in bcc.h */

static __always_inline struct gendisk *disk_of(struct request *rq)
{
	if (bpf_core_field_exists(struct request_queue, disk))
		return READ(rq, q, disk);
	return READ((struct request___before_5_17 *)rq, rq_disk);
}

static __always_inline struct gendisk *disk_of_bio(struct bio *bio)
{
	if (bpf_core_field_exists(struct bio, bi_bdev))
		return READ(bio, bi_bdev, bd_disk);
	return READ((struct bio___before_5_12 *)bio, bi_disk);
}

/* NVMe's native multipath: a path's disk is hidden (GENHD_FL_HIDDEN), and what users know is the head's. */
static __always_inline bool is_hidden(struct gendisk *disk)
{
	bool before_5_17 = bpf_core_field_exists(struct request___before_5_17, rq_disk);

	return READ(disk, flags) & (before_5_17 ? 0x400 : 2);
}

static __always_inline struct gendisk *visible(struct gendisk *disk)
{
	struct nvme_ns *path;
	struct gendisk *head;

	if (!is_hidden(disk) || !bpf_core_field_exists(struct nvme_ns_head, disk))
		return disk;
	path = (void *)READ(disk, private_data);
	head = BPF_CORE_READ(path, head, disk);
	return head ? AS(gendisk, head) : disk;
}

static __always_inline __u32 number_of_disk(struct gendisk *disk)
{
	struct gendisk *known = visible(disk);

	return (__u32)READ(known, major) << 20 | (__u32)READ(known, first_minor);
}

/* Does the bio go to that block device? Before 5.12, and on a hidden path, a bio knows a disk only, and no partition. */
static __always_inline bool goes_to(struct bio *bio, struct block_device *bdev)
{
	struct gendisk *disk;

	if (bpf_core_field_exists(struct bio, bi_bdev)) {
		if (READ(bio, bi_bdev) == bdev)
			return true;
		disk = disk_of_bio(bio);
		return is_hidden(disk) && visible(disk) == READ(bdev, bd_disk);
	}
	return visible(disk_of_bio(bio)) == READ(bdev, bd_disk);
}

/* Its dev_t. */
static __always_inline __u32 number_of_target(struct bio *bio)
{
	struct gendisk *disk = disk_of_bio(bio);

	if (bpf_core_field_exists(struct bio, bi_bdev) && !is_hidden(disk))
		return READ(bio, bi_bdev, bd_dev);
	return number_of_disk(disk);
}

/* Does a filesystem hold the block device? Whoever opens one with O_EXCL has no holder operations. */
static __always_inline bool is_held(struct block_device *bdev)
{
	if (bpf_core_field_exists(struct block_device, bd_holder_ops))
		return READ(bdev, bd_holder_ops) != NULL;
	return READ((struct block_device___before_6_5 *)bdev, bd_super) != NULL; /* not btrfs, whose writes say so */
}

static __always_inline bool is_held_target(struct bio *bio)
{
	return bpf_core_field_exists(struct bio, bi_bdev) && is_held(READ(bio, bi_bdev));
}

/*
 * The head of a page's folio, if it is a tail of one. In 7.x its compound_info may hold not the head's address but a mask
 * that leads there: all ones but for its last bits, which no page's address is.
 */
static __always_inline struct page *head_of(unsigned long address)
{
	struct page *page = AS(page, address);
	unsigned long link;

	if (bpf_core_field_exists(struct page, compound_head))
		link = WORD(page, page, compound_head);
	else
		link = WORD(page___in_7, page, compound_info);
	if (!(link & 1))
		return page;
	return AS(page, link >> 32 == 0xffffffff ? address & link : link - 1);
}

/* Whose d_alias that is; in 7.x it is no member of d_u any more. */
static __always_inline struct dentry *dentry_of_alias(struct hlist_node *alias)
{
	if (bpf_core_field_exists(struct dentry, d_u.d_alias))
		return OUTER(dentry, d_u.d_alias, alias);
	return AS(dentry, (void *)alias - OFFSET(dentry___in_7, d_alias));
}

/* The function that a workqueue's thread is running. */
static __always_inline const void *work_of(struct task_struct *task)
{
	unsigned long thread, worker;

	if (bpf_core_field_exists(struct task_struct, worker_private))
		thread = (unsigned long)READ(task, worker_private);
	else
		thread = (unsigned long)READ((struct task_struct___before_5_17 *)task, set_child_tid);
	worker = WORD(kthread, thread, data);
	return (const void *)WORD(worker, worker, current_func);
}

/* Who waits for synchronous direct I/O. */
static __always_inline __u64 waiter_of(struct iomap_dio *dio)
{
	return WORD(iomap_dio, dio, submit.waiter);
}

static __always_inline bool has_simple_dio(void)
{
	return bpf_core_type_exists(struct iomap_dio_simple);
}

static __always_inline unsigned long marks_of(struct xa_node *node, int mark)
{
	return READ(node, marks[mark]);
}

static __always_inline unsigned long index_of(void *folio)
{
	if (bpf_core_field_exists(struct folio, index))
		return READ((struct folio *)folio, index);
	return READ((struct page *)folio, index);
}

#define REQ_OP_MASK 0xff /* REQ_OP_BITS is 8 since 4.8 */

/* include/linux/sched.h; not in BTF, being macros */
#define PF_IO_WORKER 0x00000010 /* since 5.12 */
#define PF_WQ_WORKER 0x00000020
#define PF_KTHREAD 0x00200000

#define BDEVFS_MAGIC 0x62646576
#define BTRFS_SUPER_MAGIC 0x9123683E
#define BTRFS_BTREE_INODE 1 /* its metadata, as if it were a file */

#endif
