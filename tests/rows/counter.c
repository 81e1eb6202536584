/* The least: a process with registers, heap, stack and its three descriptors. */
#include "row.h"

int main(void) {
    enum { N = 1 << 20 };
    unsigned *heap = malloc(N * sizeof *heap);
    unsigned stack[1024], seed = (unsigned)getpid() * 2654435761u, x = seed;
    CHECK(heap != NULL);
    for (int i = 0; i < N; i++)
        heap[i] = x = x * 1664525u + 1013904223u;
    for (int i = 0; i < 1024; i++)
        stack[i] = x = x * 1664525u + 1013904223u;
    ready();
    x = seed;
    for (int i = 0; i < N; i++)
        EXPECT(heap[i] == (x = x * 1664525u + 1013904223u));
    for (int i = 0; i < 1024; i++)
        EXPECT(stack[i] == (x = x * 1664525u + 1013904223u));
    return done();
}
