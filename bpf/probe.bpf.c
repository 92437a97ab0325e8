// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * llmio-probe's programs: who asked for each block request, how it was asked, how long each stage took. variant.h says in
 * which ways this is compiled.
 *
 * One room each: record.h what user space gets, maps.h tables and rings with their sizes, target.h, files.h, btrfs.h and
 * stacked.h for which file a bio is, owner.h whose it is, writers.h who dirtied a file, entries.h what is kept of a
 * request, requests.h its life, getrq.h how it starts on older kernels, merging.h what merged into it, output.h its
 * records, rings.h how they leave, overflow.h
 * what is added up when a ring is full, totals.h how, counts.h a device's counts, processes.h sessions, calls.h the app's
 * view. Layouts of kernel types are in kernel_types.h, its functions in symbols.h.
 */
#if !defined(LLMIO_BCC)
#include <stdbool.h>
#include <linux/types.h>
#include <linux/bpf.h>
#include <linux/aio_abi.h>
#include <linux/uio.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#endif

#include "variant.h"
#if defined(LLMIO_BCC)
#include "bcc.h"
#endif
#include "record.h"
#if !defined(LLMIO_BCC)
#include "kernel_types.h"
#endif
#include "symbols.h"
#include "maps.h"
#include "syscalls.h"
#include "target.h"
#if !defined(LLMIO_BCC)
#include "btrfs.h"
#include "stacked.h"
#endif
#include "files.h"
#include "owner.h"
#include "writers.h"
#include "counts.h"
#include "totals.h"
#include "overflow.h"
#include "rings.h"
#include "output.h"
#include "merging.h"
#include "entries.h"
#include "getrq.h"
#include "requests.h"
#include "processes.h"
#include "calls.h"

#if defined(LLMIO_PLAIN)
/* Ring records and ids are in no map's type: name them, so that the object's BTF holds them for the check at load. */
const struct request_record *request_layout;
const struct process_record *process_layout;
const struct file_record *file_layout;
const enum op op_ids;
const enum engine engine_ids;
const enum io_path path_ids;
const enum owner_kind owner_ids;
const enum request_flag request_flag_ids;
const enum process_flag process_flag_ids;
const enum file_flag file_flag_ids;
const enum bucket_edge bucket_edge_ids;

#endif

#if !defined(LLMIO_BCC) /* which writes its own */
char LICENSE[] SEC("license") = "GPL";
#endif
