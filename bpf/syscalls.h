/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The system calls by which the engine of a request is told, and where the saved registers keep their number. */
#ifndef LLMIO_SYSCALLS_H
#define LLMIO_SYSCALLS_H

#define SYSCALL_NONE (-1) /* in a page fault */

#if defined(__TARGET_ARCH_x86)
#define SYSCALL_FUNCTION "__x64_sys_"
#define SYSCALL_OF(regs) ((long)READ(regs, orig_ax))
#define SYSCALL_ARGUMENT_2(regs) READ(regs, si)
#define SYSCALL_ARGUMENT_3(regs) READ(regs, dx)
#define SYSCALL_ARGUMENT_4(regs) READ(regs, r10)
#define SYSCALL_MMAP 9
#define SYSCALL_IOCTL 16
#define SYSCALL_MADVISE 28
#define SYSCALL_MLOCK 149
#define SYSCALL_MLOCKALL 151
#define SYSCALL_IO_SUBMIT 209
#define SYSCALL_FALLOCATE 285
#define SYSCALL_MLOCK2 325
#elif defined(__TARGET_ARCH_arm64)
#define SYSCALL_FUNCTION "__arm64_sys_"
#define SYSCALL_OF(regs) ((long)READ(regs, syscallno))
#define SYSCALL_ARGUMENT_2(regs) READ(regs, regs[1])
#define SYSCALL_ARGUMENT_3(regs) READ(regs, regs[2])
#define SYSCALL_ARGUMENT_4(regs) READ(regs, regs[3])
#define SYSCALL_IOCTL 29
#define SYSCALL_FALLOCATE 47
#define SYSCALL_MMAP 222
#define SYSCALL_MADVISE 233
#define SYSCALL_MLOCK 228
#define SYSCALL_MLOCKALL 230
#define SYSCALL_IO_SUBMIT 2
#define SYSCALL_MLOCK2 284
#else
#error "saved registers of this architecture are not known"
#endif
#define SYSCALL_IO_URING_ENTER 426

#if !defined(LLMIO_BCC)
/* Where a task's stack holds its saved registers; 0 when that is not known. */
static __always_inline __u32 find_registers(struct task_struct *task)
{
#if defined(LLMIO_PLAIN)
	struct task_struct *current = bpf_get_current_task_btf();

	return (__u64)bpf_task_pt_regs(current) - WORD(task_struct, current, stack);
#else
	/* Before 5.15 no helper tells. Behind them the stack ends: TOP_OF_KERNEL_STACK_PADDING came with FRED, in 6.9. */
	if (!bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_task_pt_regs)) {
		__u32 pages = READ(task, stack_vm_area, nr_pages);

		return pages ? pages * control.page_bytes - bpf_core_type_size(struct pt_regs) : 0;
	}
	task = bpf_get_current_task_btf();
	return (__u64)bpf_task_pt_regs(task) - WORD(task_struct, task, stack);
#endif
}
#endif

#endif
