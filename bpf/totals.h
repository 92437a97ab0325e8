/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Adding to totals that others add to at the same time, and to the buckets of record.h. What is added is the callers'. */
#ifndef LLMIO_TOTALS_H
#define LLMIO_TOTALS_H

/* A number that LLVM knows nothing of, so that it leaves no check of it out, which the verifier has to see. */
#define OPAQUE(number) asm volatile("" : "+r"(number))

static __always_inline void add(__u64 *total, __u64 amount)
{
	OPAQUE(amount); /* of adding 0 LLVM makes an atomic or, which came with 5.12 */
	__sync_fetch_and_add(total, amount);
}

/* One more of what is counted by CPU: atomic only where a program may run on top of another one that counts the same. */
static __always_inline void count(__u64 *total)
{
	if (NESTING)
		add(total, 1);
	else
		(*total)++;
}

/* The index of a value's bucket. The number of bits of value - 1 is n for (2^(n-1), 2^n]. */
static __always_inline __u64 bucket_of(__u64 value, __u32 first, __u32 last)
{
	__u64 rest = value ? value - 1 : 0, n = 0;

	if (rest >> 32) {
		n += 32;
		rest >>= 32;
	}
	if (rest >> 16) {
		n += 16;
		rest >>= 16;
	}
	if (rest >> 8) {
		n += 8;
		rest >>= 8;
	}
	if (rest >> 4) {
		n += 4;
		rest >>= 4;
	}
	if (rest >> 2) {
		n += 2;
		rest >>= 2;
	}
	n += rest >> 1 ? 2 : rest;
	if (n < first)
		n = first;
	if (n > last)
		n = last + 1;
	return n - first;
}

/*
 * One more in a value's bucket. Check and use in one piece: between them LLVM may put the index on the stack, where before
 * 5.16 the verifier forgets what it knows of a number. On ways that cannot be, such as of a value that is 0 and is not, it
 * knows contradictory bounds, and takes no pointer with those (5.10); the mask, above any bucket's index, makes them one.
 */
#define COUNT_IN(buckets, value, name)                                                                    \
	do {                                                                                              \
		__u64 bucket = bucket_of(value, BUCKET_##name##_FIRST, BUCKET_##name##_LAST);             \
		asm volatile("%[bucket] &= 63;"                                                           \
			     "if %[bucket] > %[last] goto +3;"                                            \
			     "%[bucket] <<= 2;"                                                           \
			     "%[bucket] += %[first];"                                                     \
			     "lock *(u32 *)(%[bucket] + 0) += %[one];"                                    \
			     : [bucket] "+r"(bucket)                                                      \
			     : [first] "r"(buckets), [one] "r"(1),                                        \
			       [last] "i"(BUCKET_##name##_LAST - BUCKET_##name##_FIRST + 1)               \
			     : "memory");                                                                 \
	} while (0)

/* The totals of a key in that table, made at first sight; NULL when there is no room. `nothing` is as large as any. */
static __always_inline void *kept_totals(void *table, const void *key)
{
	void *totals = bpf_map_lookup_elem(table, key), *fresh;
	__u32 zero = 0;

	if (totals)
		return totals;
	fresh = bpf_map_lookup_elem(MAP(nothing), &zero);
	if (fresh)
		bpf_map_update_elem(table, key, fresh, BPF_NOEXIST);
	return bpf_map_lookup_elem(table, key);
}

static __always_inline __u64 later(__u64 end, __u64 start)
{
	return end > start ? end - start : 0; /* clocks of two CPUs */
}

#endif
