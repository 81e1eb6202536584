/* Restartable sequences: the registration of each thread, and critical sections that are aborted when they are left in the
 * middle and never otherwise. */
#include "row.h"
#include <linux/rseq.h>
#include <pthread.h>
#include <sched.h>
#include <stddef.h>
#include <sys/syscall.h>

#define SIGNATURE 0x53053053
enum { N = 3 };
static volatile int stop, running;
static unsigned long long counts[N], aborts[N];

#if defined(__GLIBC_PREREQ)
#if __GLIBC_PREREQ(2, 35)
#include <sys/rseq.h>
#define area() ((struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset))
#define registered() (__rseq_size != 0)
#endif
#endif
#ifndef area
static __thread struct rseq own __attribute__((aligned(32)));
#define area() (&own)
#define registered() (syscall(SYS_rseq, &own, 32, 0, SIGNATURE) == 0)
#endif

static void *count(void *argument) {
    long n = (long)argument;
    struct rseq *rs = area();
    unsigned long long done = 0, aborted = 0;
    running = running + 1;
    while (!stop) {
        int ok;
        unsigned long long value = done;
        /* A long section: it is often left in the middle. It adds 1 by its last instruction. */
        __asm__ __volatile__ goto(
            ".pushsection __rseq_cs, \"aw\"\n\t"
            ".balign 32\n\t"
            "3: .long 0, 0\n\t"
            ".quad 1f, 2f - 1f, 4f\n\t"
            ".popsection\n\t"
            "leaq 3b(%%rip), %%rax\n\t"
            "movq %%rax, %[cs]\n\t"
            "1:\n\t"
            "movl $20000, %%ecx\n\t"
            "5: decl %%ecx\n\t"
            "jnz 5b\n\t"
            "movq %[next], %[store]\n\t"
            "2:\n\t"
            ".pushsection .text.unlikely\n\t"
            ".byte 0x0f, 0xb9, 0x3d\n\t"
            ".long 0x53053053\n\t"
            "4: jmp %l[abort]\n\t"
            ".popsection\n\t"
            :
            : [cs] "m"(rs->rseq_cs), [next] "r"(value + 1), [store] "m"(done)
            : "memory", "rax", "rcx"
            : abort);
        ok = 1;
        EXPECT(done == value + 1);
        continue;
    abort:
        ok = 0;
        EXPECT(done == value);
        aborted++;
        (void)ok;
    }
    rs->rseq_cs = 0;
    counts[n] = done;
    aborts[n] = aborted;
    EXPECT(rs->cpu_id < 8192);
    /* The kernel knows the area: the same is busy, another one is refused. */
    EXPECT(syscall(SYS_rseq, rs, 32, 0, SIGNATURE) == -1 && (errno == EBUSY || errno == EINVAL));
    return NULL;
}

int main(void) {
    pthread_t threads[N];
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    if (!registered()) {
        /* A kernel without. */
        ready();
        return done();
    }
    for (long i = 0; i < N; i++)
        CHECK(pthread_create(&threads[i], NULL, count, (void *)i) == 0);
    while (running != N)
        usleep(1000);
    unsigned cpu = area()->cpu_id;
    CHECK(cpu < 8192);
    ready();
    /* The kernel keeps the area up to date. */
    for (int i = 0; i < 100; i++) {
        sched_yield();
        int now = sched_getcpu();
        (void)now;
        EXPECT(area()->cpu_id < 8192 && area()->cpu_id_start == area()->cpu_id);
    }
    area()->cpu_id_start = area()->cpu_id = 7777;
    for (int i = 0; i < 10000 && area()->cpu_id == 7777; i++)
        usleep(100);
    EXPECT(area()->cpu_id != 7777);
    stop = 1;
    for (int i = 0; i < N; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        EXPECT(counts[i] > 0);
    }
    return done();
}
