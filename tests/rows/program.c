/* Programs whose file is gone, or never had a name: /proc/self/exe, and mappings of it. */
#include "row.h"
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>

extern char **environ;

/* In .data, so that a page of the file is mapped and written, and in .rodata. */
static volatile int written = 5;
static const char constant[8192] = "as it was compiled";

static void copy_to(int to) {
    struct stat stat;
    int from = open("/proc/self/exe", O_RDONLY);
    CHECK(from >= 0 && fstat(from, &stat) == 0 && fchmod(to, 0755) == 0);
    CHECK(sendfile(to, from, NULL, stat.st_size) == stat.st_size && close(from) == 0);
}

/* FNV-1a of the program's file. */
static uint64_t sum(void) {
    uint64_t sum = 0xcbf29ce484222325;
    unsigned char block[4096];
    ssize_t n;
    int fd = open("/proc/self/exe", O_RDONLY);
    if (fd < 0)
        return 0;
    while ((n = read(fd, block, sizeof block)) > 0)
        for (ssize_t i = 0; i < n; i++)
            sum = (sum ^ block[i]) * 0x100000001b3;
    close(fd);
    return sum;
}

static void name(char *link, size_t size) {
    ssize_t n = readlink("/proc/self/exe", link, size - 1);
    CHECK(n > 0);
    link[n] = 0;
}

/* What the other programs do: say `r` when they are there, and how it went when they are asked. */
static int child(int in, int out) {
    char before[200], after[200], word;
    uint64_t was = sum();
    name(before, sizeof before);
    written = 77;
    CHECK(was != 0 && write(out, "r", 1) == 1 && read(in, &word, 1) == 1);
    name(after, sizeof after);
    EXPECT(strstr(before, "(deleted)") && strcmp(before, after) == 0);
    EXPECT(sum() == was);
    SAME(written, 77);
    EXPECT(strcmp(constant, "as it was compiled") == 0 && constant[8191] == 0);
    fflush(stdout);
    return problems != 0;
}

static pid_t start(int memory, int to[2], int from[2]) {
    char path[64], in[12], out[12];
    CHECK(pipe(to) == 0 && pipe(from) == 0);
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid != 0)
        return pid;
    snprintf(path, sizeof path, "/program.%d", getpid());
    snprintf(in, sizeof in, "%d", to[0]);
    snprintf(out, sizeof out, "%d", from[1]);
    int file = memory ? memfd_create("a program", 0) : open(path, O_RDWR | O_CREAT | O_EXCL, 0755);
    CHECK(file >= 0);
    copy_to(file);
    if (!memory) {
        CHECK(close(file) == 0);
        file = open(path, O_RDONLY | O_CLOEXEC);
        CHECK(file >= 0 && unlink(path) == 0);
    }
    char *args[] = {"program", in, out, NULL};
    fexecve(file, args, environ);
    CHECK(!"executed");
    return -1;
}

int main(int argc, char **argv) {
    if (argc == 3)
        return child(atoi(argv[1]), atoi(argv[2]));
    int to[2][2], from[2][2], status;
    pid_t pids[2];
    char word;
    /* As a library is that was replaced by a newer one: hardly touched yet. */
    char path[64];
    static char page[4096];
    snprintf(path, sizeof path, "/library.%d", getpid());
    int library = open(path, O_RDWR | O_CREAT | O_EXCL, 0755);
    CHECK(library >= 0 && unlink(path) == 0);
    for (int i = 0; i < 64; i++) {
        memset(page, i + 1, sizeof page);
        CHECK(write(library, page, i == 63 ? 100 : sizeof page) > 0);
    }
    char *mapped = mmap(NULL, 70 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, library, 0);
    char *hidden = mmap(NULL, 64 * 4096, PROT_NONE, MAP_PRIVATE, library, 0);
    CHECK(mapped != MAP_FAILED && hidden != MAP_FAILED && close(library) == 0);
    mapped[5 * 4096 + 7] = 'x';
    for (int i = 0; i < 2; i++) {
        pids[i] = start(i, to[i], from[i]);
        CHECK(read(from[i][0], &word, 1) == 1);
    }

    ready();

    CHECK(mprotect(hidden, 64 * 4096, PROT_READ) == 0);
    for (int i = 0; i < 64; i++) {
        SAME(mapped[i * 4096 + 50], i + 1);
        SAME(hidden[i * 4096 + 50], i + 1);
        SAME(mapped[i * 4096 + 4095], i == 63 ? 0 : i + 1);
    }
    SAME(mapped[5 * 4096 + 7], 'x');
    for (int i = 0; i < 2; i++) {
        EXPECT(write(to[i][1], "v", 1) == 1);
        EXPECT(waitpid(pids[i], &status, 0) == pids[i]);
        SAME(status, 0);
    }
    return done();
}
