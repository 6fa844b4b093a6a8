/* Fails writes and syncs of a ledger's files from the n-th on, for tests. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static long counted, first, length, failed;
static int number;

void fail_from(long n, long how_many, int with) {
    counted = failed = 0;
    first = n;
    length = how_many;
    number = with;
}

void mend(void) { length = 0; }

long has_failed(void) { return failed; }

static int is_to_fail(int fd) {
    char link[64], name[4096];
    ssize_t size;
    if (length == 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    size = readlink(link, name, sizeof name - 1);
    if (size < 0) return 0;
    name[size] = 0;
    if (strstr(name, ".sqlite3") == NULL) return 0;
    counted++;
    if (counted < first || counted >= first + length) return 0;
    failed++;
    errno = number;
    return 1;
}

#define FAILING(type, name, parameters, arguments)                        \
    type name parameters {                                                \
        static type(*real) parameters;                                    \
        if (real == NULL) real = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
        return is_to_fail(fd) ? -1 : real arguments;                      \
    }

FAILING(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
FAILING(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
FAILING(ssize_t, pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
FAILING(int, ftruncate, (int fd, off_t size), (fd, size))
FAILING(int, ftruncate64, (int fd, off_t size), (fd, size))

/* The machine does not die here, so what works need not wait for the disk. */
int fsync(int fd) { return is_to_fail(fd) ? -1 : 0; }
int fdatasync(int fd) { return is_to_fail(fd) ? -1 : 0; }
