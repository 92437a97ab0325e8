/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Layers above a disk pass on clones of a bio: device mapper (LVM), md. The bio that was cloned says whose it is and on
 * which device. Their types are often in modules, and read as btrfs's are.
 */
#ifndef LLMIO_STACKED_H
#define LLMIO_STACKED_H

/* The bio that this one is a part or a clone of; NULL when it is neither. */
static __always_inline struct bio *above(struct bio *bio, const void *end_io)
{
	if (is_symbol(end_io, SYMBOL(bio_chain_endio)))
		return AS(bio, READ(bio, bi_private));
	if (is_symbol(end_io, SYMBOL(clone_endio)) && bpf_core_type_exists(struct dm_target_io)) {
		struct dm_target_io *tio = (void *)bio - OFFSET(dm_target_io, clone);

		return AS(bio, BPF_CORE_READ(tio, io, orig_bio));
	}
	if (is_symbol(end_io, SYMBOL(md_end_clone_io)) && bpf_core_type_exists(struct md_io_clone)) {
		struct md_io_clone *clone = (void *)bio - OFFSET(md_io_clone, bio_clone); /* 7.x: not in bi_private */

		return AS(bio, BPF_CORE_READ(clone, orig_bio));
	}
	if (is_symbol(end_io, SYMBOL(md_end_io_acct)) && bpf_core_type_exists(struct md_io_acct)) {
		struct md_io_acct *clone = (void *)READ(bio, bi_private);

		return AS(bio, BPF_CORE_READ(clone, orig_bio));
	}
	return NULL;
}

#endif
