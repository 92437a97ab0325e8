/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Who dirtied a file last, by which engine. Writeback asks for it, when whoever flushes is somebody else.
 *
 * The tracepoint fires when a clean page becomes dirty, for write(2) and for the first write fault of a shared mapping
 * alike; who writes to a dirty page is not seen. So bytes are exact by process as long as a flush lies between two
 * writers of a file; otherwise its last writer is named, and the share says that it was shared.
 */
#ifndef LLMIO_WRITERS_H
#define LLMIO_WRITERS_H

#define PAGECACHE_TAG_DIRTY 0	  /* include/linux/fs.h; marks of the page cache's xarray */
#define PAGECACHE_TAG_WRITEBACK 1
#define XARRAY_DEPTH_MAX 6 /* of 64 slots each: files of up to 256 TiB */

static __always_inline bool is_node(unsigned long entry)
{
	return (entry & 3) == 2 && entry > 4096; /* xa_is_node */
}

/*
 * Has the page that is being dirtied its mark already? Then nobody has written to it: whoever flushes puts it back, since
 * it cannot all be written yet (folio_redirty_for_writepage). ext4's journal thread does so with folios of which some
 * blocks have no place on the disk.
 */
static __always_inline bool is_put_back(struct address_space *mapping, unsigned long index)
{
	unsigned long entry = WORD(address_space, mapping, i_pages.xa_head);
	bool marked = false;

	for (int i = 0; i < XARRAY_DEPTH_MAX && is_node(entry); i++) {
		struct xa_node *node = AS(xa_node, entry - 2);
		unsigned long slot = index >> READ(node, shift) & 63;

		marked = marks_of(node, PAGECACHE_TAG_DIRTY) >> slot & 1;
		if (bpf_probe_read_kernel(&entry, sizeof(entry),
					  (void *)(entry - 2 + OFFSET(xa_node, slots) + slot * sizeof(entry))))
			return false;
	}
	return marked && !is_node(entry);
}

/*
 * Are there pages of an earlier writer that have not reached the disk? The page that is being dirtied has no mark yet. An
 * xarray of one page has no node: its head is the page, whose flags come first.
 */
static __always_inline bool has_unwritten_pages(struct address_space *mapping)
{
	unsigned long head = WORD(address_space, mapping, i_pages.xa_head), flags = 0;
	struct xa_node *node;

	if (is_node(head)) {
		node = AS(xa_node, head - 2);
		return marks_of(node, PAGECACHE_TAG_DIRTY) || marks_of(node, PAGECACHE_TAG_WRITEBACK);
	}
	if (!head || head & 3)
		return false;
	bpf_probe_read_kernel(&flags, sizeof(flags), (void *)head);
	return flags & 1UL << PAGE_FLAG(writeback);
}

/* The kernel's threads are one: its workers take turns. */
static __always_inline bool same_owner(const struct share *a, const struct share *b)
{
	return (a->owner == OWNER_KERNEL && b->owner == OWNER_KERNEL) ||
	       (a->tgid == b->tgid && a->owner_start_ns == b->owner_start_ns);
}

/* Another process or engine than before, or another inode: seldom. index: of the page that it dirties. */
GLOBAL int set_last_writer(__u64 key, __u64 index)
{
	__u64 address = bpf_get_current_task();
	struct task_struct *task = AS(task_struct, address);
	struct inode *inode = AS(inode, key);
	struct share *before = bpf_map_lookup_elem(MAP(writers), &key), writer = {};
	__u32 task_flags = READ(task, flags);
	unsigned long magic = READ(inode, i_sb, s_magic);

	if (magic == BTRFS_SUPER_MAGIC && READ(inode, i_ino) == BTRFS_BTREE_INODE)
		return 0;
	if (is_put_back(READ(inode, i_mapping), index))
		return 0;
	if (magic == BDEVFS_MAGIC) {
		struct block_device *bdev = bdev_of(inode);

		if (is_held(bdev))
			return 0; /* a filesystem's own blocks */
		identify_raw(&writer, READ(bdev, bd_dev));
	} else {
		identify_file(&writer, inode);
	}
	writer.engine = engine_of(task, task_flags);
	writer.owner = task_flags & PF_KTHREAD && !(task_flags & PF_IO_WORKER) ? OWNER_KERNEL : OWNER_PROCESS;
	own(&writer, task);
	if (before && (before->inode != writer.inode || before->inode_generation != writer.inode_generation ||
		       before->file_device != writer.file_device))
		before = NULL;
	if (has_unwritten_pages(READ(inode, i_mapping))) /* of whom, if nobody is known? dirty since before the probe ran */
		writer.shared = !before || before->shared || !same_owner(before, &writer);
	if (before && before->shared && writer.shared && before->engine == writer.engine && before->owner == writer.owner &&
	    before->tgid == writer.tgid && before->owner_start_ns == writer.owner_start_ns)
		return 0; /* still as it was */
	introduce(address);
	if (writer.file_device)
		see_file(&writer, key, 0, bpf_ktime_get_ns());
	bpf_map_update_elem(MAP(writers), &key, &writer, BPF_ANY);
	__sync_fetch_and_add(&control.writers_epoch, 1);
	return 0;
}

static __always_inline int note_writer(void *folio, struct address_space *mapping)
{
	struct task_struct *task = AS(task_struct, bpf_get_current_task());
	__u32 zero = 0, epoch, tgid, generation;
	struct last_writer *last;
	struct share *writer;
	struct inode *inode;
	__u64 key, start, number;
	__u8 engine;

	if (!control.running || !mapping)
		return 0;
	key = WORD(address_space, mapping, host);
	last = bpf_map_lookup_elem(MAP(last_writers), &zero);
	if (!key || !last)
		return 0;
	inode = AS(inode, key);
	epoch = control.writers_epoch;
	engine = engine_of(task, READ(task, flags));
	number = READ(inode, i_ino);
	generation = READ(inode, i_generation);
	tgid = READ(task, tgid);
	start = READ(task, group_leader, start_boottime);
	/* The same as before, on this CPU, and nobody else has become a writer: nearly always, and asks no table. */
	if (last->epoch == epoch && last->key == key && last->inode == number && last->generation == generation &&
	    last->tgid == tgid && last->start == start && last->engine == engine)
		return 0;
	writer = bpf_map_lookup_elem(MAP(writers), &key);
	if (!writer || writer->tgid != tgid || writer->owner_start_ns != start ||
	    writer->inode_generation != generation || writer->engine != engine ||
	    (writer->inode != number && writer->file_device) || writer->shared) {
		set_last_writer(key, index_of(folio));
		return 0;
	}
	last->epoch = epoch;
	last->key = key;
	last->inode = number;
	last->generation = generation;
	last->tgid = tgid;
	last->start = start;
	last->engine = engine;
	return 0;
}

PROGRAM(writeback_dirty_folio, void *folio, struct address_space *mapping)
{
	return note_writer(folio, mapping);
}

#if !defined(LLMIO_PLAIN)
/* Before 5.18. */
PROGRAM(writeback_dirty_page, void *page, struct address_space *mapping)
{
	return note_writer(page, mapping);
}
#else
PROGRAM_AGAIN(writeback_dirty_folio, void *folio, struct address_space *mapping)
{
	return note_writer(folio, mapping);
}
#endif

#endif
