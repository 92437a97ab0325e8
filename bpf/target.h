/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What a bio is for: what files.h and btrfs.h find out, and owner.h goes by. */
#ifndef LLMIO_TARGET_H
#define LLMIO_TARGET_H

/* Addresses are numbers, 0 when there is none. */
struct target {
	__u64 inode;		/* 0 when no file is known */
	__u64 dentry;		/* of the open file; 0: any name of the inode will do */
	__u64 dio;		/* struct iomap_dio: direct I/O of a filesystem */
	__u32 raw;		/* dev_t of a block device, or a partition, that is its own file */
	__u8 path;		/* enum io_path */
	bool held;		/* blocks of a filesystem, and not of its files */
	bool unsure;		/* may be writeback of somebody else's pages */
};

/* Direct I/O: the open file is known through the kiocb. */
static __always_inline void of_dio(struct target *target, __u64 dio)
{
	struct file *file = READ(AS(iomap_dio, dio), iocb, ki_filp);

	target->dio = dio;
	target->inode = WORD(file, file, f_inode);
	target->dentry = WORD(file, file, f_path.dentry);
	target->path = PATH_DIRECT;
}

#endif
