/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Functions of the kernel (and one variable) whose addresses tell what a bio is for, or who works; static ones too. Only
 * they tell direct I/O from cached: a page cannot, since anybody's buffer may be a page of some file.
 *
 * The loader looks these names up in /proc/kallsyms, and leaves 0 where a kernel has none of that name, or hides it. Not
 * as __ksym, which the linker cannot merge when two variants name the same one.
 */
#ifndef LLMIO_SYMBOLS_H
#define LLMIO_SYMBOLS_H

struct symbols {
	/* bio.bi_end_io */
	__u64 iomap_dio_bio_end_io;	/* ext4 (since 5.5), xfs */
	__u64 blkdev_bio_end_io;	/* a block device, synchronous or of many bios */
	__u64 blkdev_bio_end_io_async;	/* since 5.16 */
	__u64 blkdev_bio_end_io_simple; /* small synchronous ones, before 6.0 */
	__u64 submit_bio_wait_endio;	/* and since then; filesystems wait so, too */
	__u64 bio_wait_end_io;		/* its name in 7.x */
	__u64 bio_chain_endio;		/* a part of a split bio: its parent is in bi_private */
	__u64 clone_endio;		/* device mapper */
	__u64 md_end_clone_io;		/* since 6.5 */
	__u64 md_end_io_acct;		/* raid0, since 5.14 */
	__u64 end_swap_bio_read;
	__u64 end_swap_bio_write;
	__u64 mpage_read_end_io; /* since 6.3 */
	__u64 mpage_end_io;
	__u64 btrfs_simple_end_io;	/* btrfs: since 6.2, the bio lies in a struct btrfs_bio */
	__u64 btrfs_orig_write_end_io;	/* since 6.2, with copies: the last of them, likewise */
	__u64 btrfs_clone_write_end_io; /* since 6.2: the other copies */

	/* bio.bi_pool: small direct reads of ext4 and xfs since 7.x, synchronous ones too, whose bi_end_io says nothing */
	__u64 iomap_dio_simple_pool;

	/* btrfs_bio.end_io of direct I/O, since 6.2 */
	__u64 btrfs_dio_end_io;

	/* kiocb.ki_complete of processes: a worker of the kernel that submits it does so for somebody who is not known any more. */
	__u64 aio_complete_rw;
	__u64 io_complete_rw;

	/* What a loop device's worker runs, since 5.14. */
	__u64 loop_workfn;
	__u64 loop_rootcg_workfn;
};

#if !defined(LLMIO_BCC) /* whose addresses are its own constants */
const volatile struct symbols symbols SEC(".rodata.symbols") __weak = {};
#define SYMBOL(name) ((const void *)symbols.name)
#endif

static __always_inline bool is_symbol(const void *address, const void *symbol)
{
	return address && address == symbol;
}

#endif
