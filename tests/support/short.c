/* Reads and writes that do less than they were asked for, and calls that a signal interrupts: what POSIX allows, and
 * what a disk, a pipe or a network share does at times. For LD_PRELOAD; the count goes to the file that SHORT_LOG names.
 *
 * Only files and pipes: what a socket says of itself is another matter. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_uint calls, shortened, interrupted, direct;

static int is_meant(int fd) {
    struct stat at;
    return fd > 2 && fstat(fd, &at) == 0 && (S_ISREG(at.st_mode) || S_ISFIFO(at.st_mode));
}

/* 0: as asked; 1: less; 2: interrupted. */
static int turn(int fd, size_t length) {
    if (!is_meant(fd)) return 0;
    unsigned n = atomic_fetch_add(&calls, 1);
    if (n % 5 == 3) { atomic_fetch_add(&interrupted, 1); return 2; }
    if (n % 2 == 0 && length > 1) { atomic_fetch_add(&shortened, 1); return 1; }
    return 0;
}

static size_t less(size_t length) {
    return length > 9000 ? 4097 : (length + 1) / 2;
}

/* Past the page cache: a whole number of blocks and more, with a part of one, or less than one. What is asked of the
 * kernel stays a whole number, as it must; whoever is told of less writes the rest again. */
static ssize_t less_direct(int fd, const void *from, size_t length, off64_t at) {
    static const size_t told[] = { 8192, 8192 + 512, 512 };
    size_t done = told[atomic_fetch_add(&direct, 1) % 3];
    ssize_t written = syscall(SYS_pwrite64, fd, from, (done + 4095) / 4096 * 4096, at);
    return written < (ssize_t)done ? written : (ssize_t)done;
}

#define MEANT(fd, length) \
    switch (turn(fd, length)) { case 2: errno = EINTR; return -1; case 1: length = less(length); }

ssize_t read(int fd, void *to, size_t length) { MEANT(fd, length) return syscall(SYS_read, fd, to, length); }
ssize_t write(int fd, const void *from, size_t length) { MEANT(fd, length) return syscall(SYS_write, fd, from, length); }
ssize_t pread64(int fd, void *to, size_t length, off64_t at) { MEANT(fd, length) return syscall(SYS_pread64, fd, to, length, at); }
ssize_t pread(int fd, void *to, size_t length, off_t at) { return pread64(fd, to, length, at); }
ssize_t pwrite64(int fd, const void *from, size_t length, off64_t at) {
    int what = turn(fd, length);
    if (what == 2) { errno = EINTR; return -1; }
    if (length > 12288 && is_meant(fd) && (fcntl(fd, F_GETFL) & O_DIRECT)) return less_direct(fd, from, length, at);
    if (what == 1) length = less(length);
    return syscall(SYS_pwrite64, fd, from, length, at);
}
ssize_t pwrite(int fd, const void *from, size_t length, off_t at) { return pwrite64(fd, from, length, at); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    MEANT(out, length)
    return syscall(SYS_copy_file_range, in, from, out, to, length, flags);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (count > 0 && turn(fd, parts[0].iov_len) == 1) return syscall(SYS_write, fd, parts[0].iov_base, less(parts[0].iov_len));
    return syscall(SYS_writev, fd, parts, count);
}
ssize_t readv(int fd, const struct iovec *parts, int count) {
    if (count > 0 && turn(fd, parts[0].iov_len) == 1) return syscall(SYS_read, fd, parts[0].iov_base, less(parts[0].iov_len));
    return syscall(SYS_readv, fd, parts, count);
}

__attribute__((destructor)) static void tell(void) {
    const char *log = getenv("SHORT_LOG");
    int fd = log ? open(log, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (fd < 0) return;
    char line[80];
    int length = snprintf(line, sizeof line, "%u %u %u\n", atomic_load(&shortened), atomic_load(&interrupted), atomic_load(&direct));
    syscall(SYS_write, fd, line, (size_t)length);
    close(fd);
}
