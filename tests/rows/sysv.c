/* System V IPC: segments (attached, attached nowhere, removed), semaphores with undo, queues with messages; ids and keys. */
#include "row.h"
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/wait.h>

struct message {
    long type;
    char text[32];
};

static int value(int set, int number) {
    return semctl(set, number, GETVAL);
}

int main(void) {
    /* So that ids are not those that a new namespace would give. */
    for (int i = 0; i < 3; i++)
        CHECK(shmctl(shmget(IPC_PRIVATE, 4096, 0600), IPC_RMID, NULL) == 0);
    int attached = shmget(0x5151, 3 * 4096 + 5, IPC_CREAT | 0640);
    int nowhere = shmget(0x5152, 8192, IPC_CREAT | 0600);
    int removed = shmget(IPC_PRIVATE, 4096, 0600);
    CHECK(attached >= 0 && nowhere >= 0 && removed >= 0);
    char *a = shmat(attached, NULL, 0), *n = shmat(nowhere, NULL, 0), *r = shmat(removed, NULL, 0);
    CHECK(a != (void *)-1 && n != (void *)-1 && r != (void *)-1);
    const char *read_only = shmat(attached, NULL, SHM_RDONLY);
    CHECK(read_only != (void *)-1);
    strcpy(a, "attached");
    strcpy(a + 2 * 4096, "further on");
    strcpy(n, "attached nowhere");
    strcpy(r, "removed");
    CHECK(shmdt(n) == 0 && shmctl(removed, IPC_RMID, NULL) == 0);

    int set = semget(0x5353, 4, IPC_CREAT | 0600);
    unsigned short values[4] = { 10, 20, 30, 40 };
    CHECK(set >= 0 && semctl(set, 0, SETALL, values) == 0);
    struct sembuf take = { 0, -3, SEM_UNDO }, give = { 1, 5, SEM_UNDO }, plain = { 2, -1, 0 };
    CHECK(semop(set, &take, 1) == 0 && semop(set, &give, 1) == 0 && semop(set, &plain, 1) == 0);
    int go[2];
    CHECK(pipe(go) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        struct sembuf more = { 3, -7, SEM_UNDO };
        char byte;
        CHECK(semop(set, &more, 1) == 0);
        CHECK(write(go[1], "x", 1) == 1);
        close(go[1]);
        sigset_t usr1;
        int signal;
        sigemptyset(&usr1);
        sigaddset(&usr1, SIGUSR2);
        sigprocmask(SIG_BLOCK, &usr1, NULL);
        sigwait(&usr1, &signal);
        (void)byte;
        _exit(0);
    }
    char byte;
    CHECK(read(go[0], &byte, 1) == 1);

    int queue = msgget(0x5454, IPC_CREAT | 0622);
    struct message one = { 5, "five" }, two = { 2, "two" }, empty = { 9, "" };
    CHECK(queue >= 0 && msgsnd(queue, &one, 5, 0) == 0 && msgsnd(queue, &two, 4, 0) == 0);
    CHECK(msgsnd(queue, &empty, 0, 0) == 0);

    ready();

    struct shmid_ds info;
    EXPECT(strcmp(a, "attached") == 0 && strcmp(a + 2 * 4096, "further on") == 0);
    a[0] = 'A';
    EXPECT(read_only[0] == 'A');
    SAME(shmget(0x5151, 0, 0), attached);
    SAME(shmget(0x5152, 0, 0), nowhere);
    EXPECT(shmctl(attached, IPC_STAT, &info) == 0);
    SAME(info.shm_segsz, 3 * 4096 + 5);
    SAME(info.shm_perm.mode & 0777, 0640);
    SAME(info.shm_nattch, 4); /* The child has both, too. */
    n = shmat(nowhere, NULL, 0);
    EXPECT(n != (void *)-1 && strcmp(n, "attached nowhere") == 0);
    EXPECT(strcmp(r, "removed") == 0);
    EXPECT(shmctl(removed, IPC_STAT, &info) == 0 && (info.shm_perm.mode & SHM_DEST));
    EXPECT(shmdt(r) == 0);

    SAME(semget(0x5353, 4, 0), set);
    int expected[4] = { 7, 25, 29, 33 };
    for (int i = 0; i < 4; i++)
        SAME(value(set, i), expected[i]);
    EXPECT(kill(child, SIGUSR2) == 0 && waitpid(child, NULL, 0) == child);
    SAME(value(set, 3), 40);
    EXPECT(shmctl(removed, IPC_STAT, &info) < 0);
    /* Ours is undone at our end, or when we leave the list. */
    EXPECT(syscall(272 /* unshare */, 0x40000 /* CLONE_SYSVSEM */) == 0);
    SAME(value(set, 0), 10);
    SAME(value(set, 1), 20);
    SAME(value(set, 2), 29);

    struct message got;
    SAME(msgget(0x5454, 0), queue);
    EXPECT(msgrcv(queue, &got, 32, 2, IPC_NOWAIT) == 4 && strcmp(got.text, "two") == 0);
    EXPECT(msgrcv(queue, &got, 32, 0, IPC_NOWAIT) == 5 && got.type == 5 && strcmp(got.text, "five") == 0);
    EXPECT(msgrcv(queue, &got, 32, 0, IPC_NOWAIT) == 0 && got.type == 9);
    EXPECT(msgrcv(queue, &got, 32, 0, IPC_NOWAIT) < 0 && errno == ENOMSG);
    return done();
}
