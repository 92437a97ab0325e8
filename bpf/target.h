/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a bio is for: what files.h and btrfs.h find out, and owner.h goes by. */
#ifndef LLMIO_TARGET_H
#define LLMIO_TARGET_H

/* Addresses are numbers, 0 when there is none. */
struct target {
	__u64 inode;		/* 0 when no file is known */
	__u64 dentry;		/* of the open file; 0: any name of the inode will do */
	__u64 kiocb;		/* direct I/O of a filesystem */
	__u64 dio;		/* its struct iomap_dio, if it has one */
	__u32 raw;		/* dev_t of a block device, or a partition, that is its own file */
	__u8 path;		/* enum io_path */
	bool held;		/* blocks of a filesystem, and not of its files */
	bool unsure;		/* may be writeback of somebody else's pages */
};

/* Direct I/O: the open file is known through the kiocb. */
static __always_inline void of_kiocb(struct target *target, struct kiocb *kiocb)
{
	struct file *file = READ(kiocb, ki_filp);

	target->kiocb = (__u64)kiocb;
	target->inode = WORD(file, file, f_inode);
	target->dentry = WORD(file, file, f_path.dentry);
	target->path = PATH_DIRECT;
}

static __always_inline void of_dio(struct target *target, __u64 dio)
{
	target->dio = dio;
	of_kiocb(target, READ(AS(iomap_dio, dio), iocb));
}

/* Of one block at most, since 7.x: without a struct iomap_dio. */
static __always_inline bool of_simple_dio(struct target *target, struct bio *bio)
{
	if (!has_simple_dio() || !is_symbol(READ(bio, bi_pool), SYMBOL(iomap_dio_simple_pool)))
		return false;
	of_kiocb(target, READ(OUTER(iomap_dio_simple, bio, bio), iocb));
	return true;
}

#endif
