/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The ways in which this source is compiled, and the words in which it is written so that it fits them all.
 *
 *   plain   for the object: kernel memory is read by plain loads. tp_btf programs know their arguments' types, and
 *           bpf_rdonly_cast (Linux 6.2) lends one to any address.
 *   probe   for the object, too: raw_tp programs that read by bpf_probe_read_kernel. For kernels from 5.10 on.
 *   BCC     compiled on the host against the kernel's headers, where there is no BTF: as probe, but without CO-RE.
 *
 * plain and probe are linked into one object (Makefile); programs of probe have names of their own, `block_getrq__probe`,
 * and where a tracepoint's argument has moved, one for each place, `block_getrq__probe_at1`. The loader chooses by what
 * the kernel's BTF says (llmio_probe/kernel/variants.py).
 */
#ifndef LLMIO_VARIANT_H
#define LLMIO_VARIANT_H

/*
 * Functions that are not inline:
 *
 *   GLOBAL      verified once, and not on every path that leads to it; with all of them inline, loading takes four times
 *               as long, and loops are too much for the verifier. Its arguments are numbers, addresses too.
 *   SUBPROGRAM  one with pointers among its arguments: global since 5.12, where plain is.
 *   SIDE_PATH   static, and seldom run.
 */

/* One to four members on the way from a pointer: READ(rq, q, disk, major). */
#define COUNTED(_1, _2, _3, _4, name, ...) name
#define ARROW1(pointer, a) (pointer)->a
#define ARROW2(pointer, a, b) (pointer)->a->b
#define ARROW3(pointer, a, b, c) (pointer)->a->b->c
#define ARROW4(pointer, a, b, c, d) (pointer)->a->b->c->d
#define ARROW(pointer, ...) COUNTED(__VA_ARGS__, ARROW4, ARROW3, ARROW2, ARROW1)(pointer, __VA_ARGS__)

#if defined(LLMIO_PLAIN)

#define PROGRAM(tracepoint, ...) HELD_PROGRAM(tracepoint, tracepoint, __VA_ARGS__)
#define PROGRAM_AGAIN(tracepoint, ...) HELD_PROGRAM(tracepoint, tracepoint##__again, __VA_ARGS__)
#define HELD_PROGRAM(tracepoint, name, ...)                              \
	static __always_inline int name##_body(unsigned long long *ctx); \
	SEC("tp_btf/" #tracepoint) int name(unsigned long long *ctx)     \
	{                                                                \
		hold_cpu();                                              \
		name##_body(ctx);                                        \
		release_cpu();                                           \
		return 0;                                                \
	}                                                                \
	static __always_inline int BPF_PROG(name##_body, __VA_ARGS__)
#define GLOBAL __noinline
#define SUBPROGRAM __noinline

#define SYSCALL_PROGRAM(name, context) SEC("tracepoint/syscalls/sys_" #name) int name(struct context *ctx)
#define FUNCTION_PROGRAM(name) name##__fentry

/*
 * Since 7.0 tracepoints are guarded by SRCU (of which this type is a sign, to variants.py too), and a program on them can
 * be preempted. Until its task goes on, the kernel skips that program for all others on the CPU, as if it recursed. So
 * there are two of each in a submitter's way then, and the second, AGAIN, does what the first was skipped for
 * (docs/kernel.md says how often that is). And none on a tracepoint lets go of the CPU before its end: what is counted by CPU
 * is not atomic. The kfuncs came with 6.10, global functions may be called between them since 6.15.
 */
typedef struct {
} class_srcu_fast_notrace_t;
extern void bpf_preempt_disable(void) __ksym __weak;
extern void bpf_preempt_enable(void) __ksym __weak;
#define PREEMPTIBLE bpf_core_type_exists(class_srcu_fast_notrace_t)
/* An interrupt's completion may come on top of a polled one: of two programs neither keeps the other from running. */
#define NESTING PREEMPTIBLE

static __always_inline void hold_cpu(void)
{
	if (PREEMPTIBLE)
		bpf_preempt_disable();
}

static __always_inline void release_cpu(void)
{
	if (PREEMPTIBLE)
		bpf_preempt_enable();
}

extern void *bpf_rdonly_cast(const void *pointer, __u32 type) __ksym __weak;

/* An address as a pointer to a kernel type: what leads nowhere reads as 0. Types of the kernel proper, not of modules. */
#define AS(type, pointer) ((struct type *)bpf_rdonly_cast((void *)(pointer), bpf_core_type_id_kernel(struct type)))
#define READ(pointer, ...) ARROW(pointer, __VA_ARGS__)
/* A member as a number: the verifier must not take it for a pointer, with which it allows no arithmetic. */
#define WORD(type, pointer, member) \
	((unsigned long)AS(timespec64, (void *)(pointer) + OFFSET(type, member))->tv_sec)

#define IOCBS_MAX 4096
#define REQUEST_BIOS_MAX 2048

#elif !defined(LLMIO_BCC)

#define PROGRAM(tracepoint, ...) SEC("raw_tp/" #tracepoint) int BPF_PROG(tracepoint##__probe, __VA_ARGS__)
#define PROGRAM_AT(index, tracepoint, ...) \
	SEC("raw_tp/" #tracepoint) int BPF_PROG(tracepoint##__probe_at##index, __VA_ARGS__)
#define SYSCALL_PROGRAM(name, context) SEC("tracepoint/syscalls/sys_" #name) int name##__probe(struct context *ctx)
#define FUNCTION_PROGRAM(name) name##__probe_fentry
#define GLOBAL __noinline
#define SUBPROGRAM static __noinline

/* The linker must not take one variant's for the other's. */
#define claim_slot claim_slot__probe
#define introduce introduce__probe
#define set_last_writer set_last_writer__probe
#define share_out_round share_out_round__probe
#define add_iocb_round add_iocb_round__probe
#define AS(type, pointer) ((struct type *)(pointer))
#define READ(pointer, ...) BPF_CORE_READ(pointer, __VA_ARGS__)

/* bpf_loop came with 5.17. A loop is verified round by round, 8,192 branches at most. */
#define IOCBS_MAX 1024
#define REQUEST_BIOS_MAX 512

#endif

#if !defined(LLMIO_PLAIN)

#define PREEMPTIBLE false
#define NESTING true /* before 6.1 (05b24ff9b2cf) raw tracepoints have no guard */
#define WORD(type, pointer, member) ((unsigned long)READ((struct type *)(pointer), member))

#endif

#if defined(LLMIO_BCC) /* whose functions are all inline */
#define IOCBS_MAX 256
#define REQUEST_BIOS_MAX 128 /* NVMe's most segments, too */
#endif

#if !defined(LLMIO_BCC)

#define SIDE_PATH __noinline
#define MAP(name) (&(name))

/* Around a system call's function, named as the architecture does (syscalls.h). */
#define ENTRY_PROGRAM(name) \
	SEC("fentry/" SYSCALL_FUNCTION #name) int EXPANDED(FUNCTION_PROGRAM(enter_##name), struct pt_regs *regs)
#define EXIT_PROGRAM(name) \
	SEC("fexit/" SYSCALL_FUNCTION #name) int EXPANDED(FUNCTION_PROGRAM(exit_##name), struct pt_regs *regs, long result)
#define EXPANDED(name, ...) BPF_PROG(name, __VA_ARGS__)
#define ENTRY_PROGRAM_AGAIN(name) \
	SEC("fentry/" SYSCALL_FUNCTION #name) int BPF_PROG(enter_##name##__again_fentry, struct pt_regs *regs)
#define EXIT_PROGRAM_AGAIN(name) \
	SEC("fexit/" SYSCALL_FUNCTION #name) int BPF_PROG(exit_##name##__again_fentry, struct pt_regs *regs, long result)
#define OFFSET(type, member) bpf_core_field_offset(struct type, member)
/* Of an outer struct that holds another one: the way back. */
#define OUTER(type, member, address) AS(type, (void *)(address) - OFFSET(type, member))

#endif

#endif
