/*
 * What a system call takes: the CPU time in nanoseconds, over the given number of rounds. A round of `getppid` is one that
 * does no I/O, a round of `libaio` an io_submit and an io_getevents for a block of this program, which the page cache has.
 */
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static char block[512];

int main(int argc, char **argv)
{
	struct iocb read = { .aio_lio_opcode = IOCB_CMD_PREAD, .aio_buf = (__u64)block, .aio_nbytes = sizeof(block) };
	struct iocb *reads = &read;
	int libaio = argc > 1 && !strcmp(argv[1], "libaio");
	long rounds = argc > 2 ? atol(argv[2]) : 1, left;
	struct timespec begin, end;
	aio_context_t context = 0;
	struct io_event event;

	read.aio_fildes = open("/proc/self/exe", O_RDONLY);
	if (read.aio_fildes == (__u32)-1 || (libaio && syscall(SYS_io_setup, 1, &context)))
		return 1;
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &begin);
	for (left = rounds; left; left--) {
		if (!libaio)
			syscall(SYS_getppid);
		else if (syscall(SYS_io_submit, context, 1, &reads) != 1 ||
			 syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1)
			return 1;
	}
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
	printf("%f\n", ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / rounds);
	return 0;
}
