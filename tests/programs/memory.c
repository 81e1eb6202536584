/* Holds random memory and does what it is told by one letter on its standard input.
 *
 * memory MB small|huge     says `ready` when its memory is full
 *   n   says `now` and CLOCK_REALTIME in nanoseconds
 *   t   writes to one page of a hundred, says `touched`
 *   f   forks once, says `forked` and how long the fork took, in nanoseconds
 *   s   says `sum` and a checksum of its memory
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define HUGE_PAGE ((uintptr_t)2 << 20)

static int64_t now(clockid_t clock)
{
	struct timespec t;
	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ll + t.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	size_t size = strtoul(argv[1], NULL, 10) << 20;
	char *map = mmap(NULL, size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return 1;
	char *start = (char *)(((uintptr_t)map + HUGE_PAGE - 1) & -HUGE_PAGE);
	madvise(start, size, strcmp(argv[2], "huge") ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
	uint64_t *words = (uint64_t *)start, x = now(CLOCK_REALTIME) | 1, sum = 0;
	size_t count = size / sizeof *words, round = 0;
	for (size_t i = 0; i < count; i++) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		words[i] = x;
	}
	puts("ready");
	fflush(stdout);
	char letter;
	while (read(0, &letter, 1) == 1) {
		switch (letter) {
		case 'n':
			printf("now %lld\n", (long long)now(CLOCK_REALTIME));
			break;
		case 't':
			round++;
			for (size_t page = round % 100; page < size / PAGE; page += 100)
				words[page * (PAGE / sizeof *words)] += round;
			puts("touched");
			break;
		case 'f': {
			int64_t before = now(CLOCK_MONOTONIC);
			pid_t child = fork();
			if (child == 0)
				_exit(0);
			int64_t after = now(CLOCK_MONOTONIC);
			waitpid(child, NULL, 0);
			printf("forked %lld\n", (long long)(after - before));
			break;
		}
		case 's':
			sum = 0;
			for (size_t i = 0; i < count; i++)
				sum = sum * 31 + words[i];
			printf("sum %016llx\n", (unsigned long long)sum);
			break;
		}
		fflush(stdout);
	}
	for (;;)
		pause();
}
