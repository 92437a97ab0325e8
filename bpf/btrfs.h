/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * btrfs puts its own bios around everything; they lead to the inode, since 6.2. It is often a module, whose types are in a
 * BTF of their own: bpf_rdonly_cast knows them not, so they are read by helpers in every variant.
 */
#ifndef LLMIO_BTRFS_H
#define LLMIO_BTRFS_H

/* What stat calls st_dev; 0 when it is not known. */
static __always_inline __u32 device_of_subvolume(struct inode *inode)
{
	struct btrfs_inode *outer = (void *)inode - bpf_core_field_offset(struct btrfs_inode, vfs_inode);

	return bpf_core_type_exists(struct btrfs_root) ? BPF_CORE_READ(outer, root, anon_dev) : 0;
}

static __always_inline bool of_btrfs(struct target *target, struct bio *bio, const void *end_io, __u8 op)
{
	struct btrfs_bio *outer;
	struct btrfs_inode *owner;
	const void *done;

	if (!bpf_core_field_exists(struct btrfs_bio, inode))
		return false;
	if (is_symbol(end_io, SYMBOL(btrfs_clone_write_end_io))) {
		struct btrfs_io_stripe *stripe = (void *)READ(bio, bi_private);

		bio = BPF_CORE_READ(stripe, bioc, orig_bio);
	} else if (!is_symbol(end_io, SYMBOL(btrfs_simple_end_io)) &&
		   !is_symbol(end_io, SYMBOL(btrfs_orig_write_end_io))) {
		return false;
	}
	outer = (void *)bio - bpf_core_field_offset(struct btrfs_bio, bio);
	owner = BPF_CORE_READ(outer, inode);
	if (!owner) /* a scrub */
		return true;
	target->inode = (__u64)owner + bpf_core_field_offset(struct btrfs_inode, vfs_inode);
	done = BPF_CORE_READ(outer, end_io);
	if (!done) { /* split off another one */
		outer = BPF_CORE_READ(outer, private);
		done = BPF_CORE_READ(outer, end_io);
	}
	if (is_symbol(done, SYMBOL(btrfs_dio_end_io)))
		of_dio(target, (__u64)BPF_CORE_READ(outer, private));
	else
		target->path = op == OP_READ ? PATH_PAGE_CACHE : PATH_WRITEBACK;
	return true;
}

#endif
