/* Stops a program at an exact write or sync of its journal, as a power cut or a full
 * disk would. Loaded by LD_PRELOAD, so that the program itself holds no test hook.
 *
 * JOURNAL_STOP=KIND:N:HOW   at the N-th (from 1) KIND, `write` or `sync`, of a file
 *                           whose name ends in journal.db-wal:
 *                           before  SIGKILL instead of it
 *                           half    SIGKILL after half of the bytes (write)
 *                           after   SIGKILL right after it
 *                           fail    it fails with EIO, once (sync) or ENOSPC, from then on (write)
 * JOURNAL_TALLY=FILE        appends `w` or `s` to FILE for each of them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum how { NOT_HERE, BEFORE, HALF, AFTER, FAIL };

static atomic_int writes, syncs;

static int is_journal(int fd) {
    static const char name[] = "journal.db-wal";
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    size_t wanted = sizeof name - 1;
    return length >= (ssize_t)wanted && memcmp(path + length - wanted, name, wanted) == 0;
}

static void tally(const char *letter) {
    const char *file = getenv("JOURNAL_TALLY");
    int fd = file ? (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (fd >= 0) {
        syscall(SYS_write, fd, letter, 1);
        close(fd);
    }
}

static enum how what_happens(int fd, const char *kind, const char *letter, atomic_int *count) {
    int saved = errno;
    enum how how = NOT_HERE;
    if (is_journal(fd)) {
        char wanted_kind[16], word[16];
        int wanted, number = atomic_fetch_add(count, 1) + 1;
        const char *stop = getenv("JOURNAL_STOP");
        tally(letter);
        if (stop && sscanf(stop, "%15[a-z]:%d:%15[a-z]", wanted_kind, &wanted, word) == 3 && strcmp(kind, wanted_kind) == 0) {
            if (!strcmp(word, "fail")) how = number == wanted || (number > wanted && *kind == 'w') ? FAIL : NOT_HERE;
            else if (number == wanted) how = !strcmp(word, "before") ? BEFORE : !strcmp(word, "half") ? HALF : AFTER;
        }
    }
    errno = saved;
    return how;
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

static ssize_t put(int fd, const void *bytes, size_t count, off_t offset, int positioned) {
    enum how how = what_happens(fd, "write", "w", &writes);
    if (how == BEFORE) die();
    if (how == FAIL) {
        errno = ENOSPC;
        return -1;
    }
    size_t part = how == HALF ? count / 2 : count;
    ssize_t written = positioned ? syscall(SYS_pwrite64, fd, bytes, part, offset) : syscall(SYS_write, fd, bytes, part);
    if (how != NOT_HERE) die();
    return written;
}

ssize_t write(int fd, const void *bytes, size_t count) { return put(fd, bytes, count, 0, 0); }
ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) { return put(fd, bytes, count, offset, 1); }
ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) { return put(fd, bytes, count, offset, 1); }

static int sync_file(int fd, long number) {
    enum how how = what_happens(fd, "sync", "s", &syncs);
    if (how == BEFORE) die();
    if (how == FAIL) {
        errno = EIO;
        return -1;
    }
    int result = (int)syscall(number, fd);
    if (how != NOT_HERE) die();
    return result;
}

int fsync(int fd) { return sync_file(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_file(fd, SYS_fdatasync); }
