/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Which file a bio is for and on which path, from its completion function, its pages and what they lead to; and the
 * name of a file, read at first sight. Who asked is owner.h's.
 */
#ifndef LLMIO_FILES_H
#define LLMIO_FILES_H

/* A bio of 2 GiB cut at a limit of 128 KiB chains in one level; deeper chains come from stacked splits only. */
#define CHAIN_MAX 4

/* Names from a file up to its filesystem's root; PATH_MAX allows 2,048 of one letter. */
#define FILE_DEPTH_MAX 64
#define FILE_NAME_MAX 256 /* NAME_MAX and its NUL */

/* A file's name is looked at again at its first request in another such period of 1.07 s, in case it was renamed. */
#define FILE_PERIOD_SHIFT 30

static __always_inline struct block_device *bdev_of(struct inode *inode)
{
	return (struct block_device *)OUTER(bdev_inode, vfs_inode, inode); /* its first member */
}

/* What stat calls st_dev: btrfs numbers inodes in each subvolume anew, and a subvolume has a device number of its own. */
static __always_inline __u32 device_of_inode(struct inode *inode, struct super_block *sb)
{
	__u32 device = READ(sb, s_dev);

	return READ(sb, s_magic) == BTRFS_SUPER_MAGIC ? device_of_subvolume(inode) ?: device : device;
}

static __always_inline void identify_file(struct share *share, struct inode *inode)
{
	share->inode = READ(inode, i_ino);
	share->inode_generation = READ(inode, i_generation);
	share->file_device = device_of_inode(inode, READ(inode, i_sb));
}

static __always_inline void identify_raw(struct share *share, __u32 device)
{
	share->inode = device;
	share->inode_generation = 0;
	share->file_device = 0;
}

/*
 * The page cache of a file: believed only if the page is the file's own, on the device that the bio goes to. first: the bio
 * that has the pages. waited: somebody waits for this very bio, as small direct I/O on a block device does, and filesystems
 * for blocks of their own.
 */
static __always_inline void of_pages(struct target *target, struct bio *first, struct bio *bio, __u8 op,
				     const void *end_io)
{
	const void *waits = SYMBOL(submit_bio_wait_endio) ? SYMBOL(submit_bio_wait_endio) : SYMBOL(bio_wait_end_io);
	bool waited = is_symbol(end_io, waits), somebodys;
	struct bio_vec *vector = READ(first, bi_io_vec);
	struct page *page = head_of(WORD(bio_vec, vector, bv_page));
	unsigned long mapping = WORD(page, page, mapping), host;

	somebodys = mapping & 3; /* FOLIO_MAPPING_FLAGS: anonymous, KSM, movable */
	if (mapping && !somebodys) {
		host = WORD(address_space, mapping, host);
		if (host && WORD(inode, host, i_mapping) == mapping) {
			struct inode *inode = AS(inode, host);
			struct super_block *sb = READ(inode, i_sb);
			bool whole = READ(sb, s_magic) == BDEVFS_MAGIC;
			struct block_device *bdev = whole ? bdev_of(inode) : READ(sb, s_bdev);

			somebodys = true;
			/* No filesystem waits for a single bio of its pages; small direct I/O from a mapped file does. */
			if (goes_to(bio, bdev) && !(waited && op == OP_WRITE)) {
				target->path = op == OP_READ ? PATH_PAGE_CACHE : PATH_WRITEBACK;
				/* Read as a file; ext4 reads folders ahead so, too. */
				if (whole && is_held(bdev) &&
				    (is_symbol(end_io, SYMBOL(mpage_read_end_io)) ||
				     is_symbol(end_io, SYMBOL(mpage_end_io))))
					return;
				target->inode = host;
				if (whole) {
					target->held = is_held(bdev);
					target->raw = READ(bdev, bd_dev);
				}
				return;
			}
			if (!waited) {
				target->unsure = op == OP_WRITE; /* a layer above writes back */
				return;
			}
		}
	}
	if (waited) {
		if (!somebodys && is_held_target(bio)) {
			target->held = true;
			return;
		}
		target->path = PATH_DIRECT;
		target->raw = number_of_target(bio);
	} else if (somebodys) {
		target->path = PATH_DIRECT; /* only direct I/O takes that to a disk, swap has been told apart */
	} else {
		target->unsure = op == OP_WRITE; /* the kernel's own memory, perhaps a copy of what is written back */
	}
}

/*
 * Read and write bios. The addresses of functions may be hidden: then direct and cached I/O look alike, and nothing is
 * said but whether it is surely not writeback.
 */
static __always_inline void look_at(struct target *target, struct bio *bio, __u32 opf, __u8 op)
{
	const void *end_io = READ(bio, bi_end_io);
	struct bio *first = bio; /* its pages; a parent may have none yet */

	if (!end_io)
		return;
	if (!SYMBOL(bio_chain_endio)) { /* which every kernel has */
		struct target guess = {};

		if (op == OP_WRITE)
			of_pages(&guess, bio, bio, op, NULL);
		target->unsure = op == OP_WRITE && guess.path != PATH_DIRECT;
		return;
	}
	for (int i = 0; i < CHAIN_MAX; i++) {
		struct bio *outer = above(bio, end_io);

		if (!outer)
			break;
		bio = outer;
		end_io = READ(bio, bi_end_io);
	}
	if (end_io == SYMBOL(iomap_dio_bio_end_io)) {
		of_dio(target, WORD(bio, bio, bi_private));
	} else if (is_symbol(end_io, SYMBOL(blkdev_bio_end_io_async)) || is_symbol(end_io, SYMBOL(blkdev_bio_end_io)) ||
		   is_symbol(end_io, SYMBOL(blkdev_bio_end_io_simple))) {
		target->path = PATH_DIRECT;
		target->raw = number_of_target(bio);
	} else if (is_symbol(end_io, SYMBOL(end_swap_bio_read)) || is_symbol(end_io, SYMBOL(end_swap_bio_write)) ||
		   (HAS_REQUEST_FLAG(SWAP) && opf & REQUEST_FLAG(SWAP))) {
		target->path = PATH_SWAP;
	} else if (!of_simple_dio(target, bio) && !of_btrfs(target, bio, end_io, op)) {
		of_pages(target, first, bio, op, end_io);
	}
}

/* Any name of an inode. */
static __always_inline struct dentry *alias_of(struct inode *inode)
{
	struct hlist_node *first = READ(inode, i_dentry.first);

	return first ? dentry_of_alias(first) : NULL;
}

/* Changes when the file gets another name or folder, or loses its name. */
static __always_inline __u32 name_of(struct dentry *dentry)
{
	if (!dentry)
		return 0;
	return READ(dentry, d_name.hash) ^ (__u32)WORD(dentry, dentry, d_parent) ^ !READ(dentry, d_hash.pprev);
}

/* The names from the file up to the root, each with its NUL; returns their length. */
static __always_inline __u32 read_path(struct file_record *record, char *path, struct dentry *dentry,
				       struct dentry *root)
{
	__u32 length = 0;

	for (int i = 0; i < FILE_DEPTH_MAX; i++) {
		struct dentry *parent = READ(dentry, d_parent);
		long copied;

		if (dentry == root)
			return length;
		if (parent == dentry) { /* opened by its handle: connected to no folder */
			record->flags |= FILE_NAMELESS;
			return 0;
		}
		if (length > FILE_PATH_MAX - FILE_NAME_MAX)
			break;
		copied = bpf_probe_read_kernel_str(path + length, FILE_NAME_MAX, READ(dentry, d_name.name));
		if (copied <= 0)
			break;
		length += (__u32)copied & (2 * FILE_NAME_MAX - 1);
		dentry = parent;
	}
	record->flags |= FILE_CUT;
	return length;
}

/*
 * Tell user space a file's name, at its first request and when the name has changed. Seen only after the record was
 * written: else the next request tries again. dentry may be 0.
 */
SUBPROGRAM int see_file(struct share *share, __u64 inode_address, __u64 dentry_address, __u64 now)
{
	struct inode *inode = AS(inode, inode_address);
	struct dentry *dentry = dentry_address ? AS(dentry, dentry_address) : NULL;
	struct file_scratch *scratch;
	struct file_record *record;
	struct file_seen *seen, fresh;
	__u32 zero = 0, length;
	struct file_key key;

	if (!share)
		return 0;
	key.inode = share->inode;
	key.generation = share->inode_generation;
	key.device = share->file_device;
	seen = bpf_map_lookup_elem(MAP(files), &key);
	fresh.period = now >> FILE_PERIOD_SHIFT;
	if (seen && seen->period == fresh.period)
		return 0;
	if (!dentry)
		dentry = alias_of(inode);
	fresh.name = name_of(dentry);
	if (seen && (seen->name == fresh.name || !dentry)) {
		seen->period = fresh.period;
		return 0;
	}
	scratch = bpf_map_lookup_elem(MAP(file_scratch), &zero);
	if (!scratch || scratch->busy) /* an interrupt's: it tries again */
		return 0;
	scratch->busy = 1;
	record = &scratch->record;
	record->time_ns = now;
	record->inode = share->inode;
	record->owner_start_ns = share->owner_start_ns;
	record->size = READ(inode, i_size);
	record->inode_generation = share->inode_generation;
	record->file_device = share->file_device;
	record->mount_device = READ(inode, i_sb, s_dev);
	record->tgid = share->tgid;
	record->flags = dentry ? 0 : FILE_NAMELESS;
	if (!READ(inode, i_nlink))
		record->flags |= FILE_DELETED;
	length = dentry ? read_path(record, scratch->path, dentry, READ(inode, i_sb, s_root)) : 0;
	record->path_bytes = length;
	length &= 2 * FILE_PATH_MAX - 1;
	if (length > FILE_PATH_MAX)
		length = FILE_PATH_MAX;
	/* Wakes a reader that has read all: mounts and namespaces must be looked at while they are there. */
	if (bpf_ringbuf_output(MAP(files_ring), record, sizeof(*record) + length, 0) == 0) {
		bpf_map_update_elem(MAP(files), &key, &fresh, BPF_ANY);
	} else {
		struct ring_losses *lost = losses();

		if (lost)
			lost->files++;
	}
	scratch->busy = 0;
	return 0;
}

#endif
