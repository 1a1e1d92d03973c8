/* For LD_PRELOAD: writes down, in one order, all that a process does to the files below a
 * directory, and when each answer to a client leaves it. See README.md.
 *
 *   POWER_LOG   the file that events are appended to (record.h)
 *   POWER_DIR   the directory, without a slash at its end, by the name that the process uses
 *   POWER_FAIL  N: the Nth sync fails with EIO, and its data is not written: as a kernel does that
 *               met an error in the background and marks the pages clean (fsync(2), NOTES) */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "tests/power/record.h"

enum { FDS = 32768, TEXT_MAX = 4 * 1024 * 1024 };

enum kind { OTHER = 0, FILE_OF_OURS, DIRECTORY, CLIENT };

static struct {
    unsigned char kind;
    uint64_t ino; /* CLIENT: its number */
    char *path;   /* DIRECTORY */
} fds[FDS];

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static const char *base;
static size_t base_len;
static uint64_t clients;
static long syncs, fail_at;

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("POWER_LOG");
    base = getenv("POWER_DIR");
    if (path == NULL || base == NULL)
        return;
    base_len = strlen(base);
    const char *nth = getenv("POWER_FAIL");
    fail_at = nth != NULL ? strtol(nth, NULL, 10) : 0;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    log_fd = fcntl(fd, F_DUPFD_CLOEXEC, 500);
    if (log_fd < 0)
        abort();
    syscall(SYS_close, fd);
    clients = (uint64_t)getpid() << 32;
}

/* The mutex is held. */
static void put2(enum event_type type, uint64_t ino, uint64_t at, const void *a, size_t n,
                 const void *b, size_t m)
{
    struct event e = {.type = type, .len = (uint32_t)(n + m), .ino = ino, .at = at};
    struct iovec v[3] = {{&e, sizeof(e)}, {(void *)(uintptr_t)a, n}, {(void *)(uintptr_t)b, m}};
    ssize_t all = (ssize_t)(sizeof(e) + n + m);
    if (syscall(SYS_writev, log_fd, v, 3) != all)
        abort(); /* a record with a gap proves nothing */
}

static void put(enum event_type type, uint64_t ino, uint64_t at, const void *text, size_t len)
{
    put2(type, ino, at, text, len, NULL, 0);
}

/* Behind the recorded directory; NULL: elsewhere. */
static const char *below(const char *path)
{
    if (log_fd < 0 || strncmp(path, base, base_len) != 0)
        return NULL;
    const char *p = path + base_len;
    return *p == '/' ? p + 1 : *p == '\0' ? p : NULL;
}

static enum kind kind_of(int fd)
{
    return log_fd >= 0 && fd >= 0 && fd < FDS ? fds[fd].kind : OTHER;
}

/* The C library names its parameters with underscores. */
/* NOLINTBEGIN(readability-inconsistent-declaration-parameter-name) */

/* ---- opening and closing ---- */

static int open_any(int at, const char *path, int flags, mode_t mode)
{
    const char *p = at == AT_FDCWD ? below(path) : NULL;
    if (p == NULL || (flags & O_TMPFILE) == O_TMPFILE)
        return (int)syscall(SYS_openat, at, path, flags, mode);
    struct stat st;
    pthread_mutex_lock(&mutex);
    bool there = stat(path, &st) == 0;
    int fd = (int)syscall(SYS_openat, at, path, flags, mode);
    int error = errno;
    if (fd >= FDS)
        abort();
    if (fd >= 0 && fstat(fd, &st) == 0) {
        fds[fd].kind = S_ISDIR(st.st_mode) ? DIRECTORY : FILE_OF_OURS;
        fds[fd].ino = st.st_ino;
        if (S_ISDIR(st.st_mode))
            fds[fd].path = strdup(p);
        else if (!there)
            put(EVENT_CREATE, st.st_ino, 0, p, strlen(p));
        else if (flags & O_TRUNC)
            put(EVENT_SIZE, st.st_ino, 0, NULL, 0);
    }
    pthread_mutex_unlock(&mutex);
    errno = error;
    return fd;
}

static mode_t mode_of(int flags, va_list *ap)
{
    return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(*ap, mode_t) : 0;
}

#define OPEN(name, first, at)                             \
    __attribute__((visibility("default"))) int name first \
    {                                                     \
        va_list ap;                                       \
        va_start(ap, flags);                              \
        mode_t mode = mode_of(flags, &ap);                \
        va_end(ap);                                       \
        return open_any(at, path, flags, mode);           \
    }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD)
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD)
OPEN(openat, (int dirfd, const char *path, int flags, ...), dirfd)
OPEN(openat64, (int dirfd, const char *path, int flags, ...), dirfd)

int close(int fd)
{
    if (kind_of(fd) != OTHER) {
        pthread_mutex_lock(&mutex);
        fds[fd].kind = OTHER;
        free(fds[fd].path);
        fds[fd].path = NULL;
        pthread_mutex_unlock(&mutex);
    }
    return (int)syscall(SYS_close, fd);
}

/* ---- changes ---- */

static ssize_t write_at(int fd, const void *p, size_t n, off_t at)
{
    pthread_mutex_lock(&mutex);
    if (at < 0)
        at = lseek(fd, 0, SEEK_CUR);
    ssize_t done = (ssize_t)syscall(SYS_pwrite64, fd, p, n, at);
    int error = errno;
    if (done > 0)
        put(EVENT_WRITE, fds[fd].ino, (uint64_t)at, p, (size_t)done);
    pthread_mutex_unlock(&mutex);
    errno = error;
    return done;
}

static ssize_t pwrite_any(int fd, const void *p, size_t n, off_t at)
{
    if (kind_of(fd) == FILE_OF_OURS)
        return write_at(fd, p, n, at);
    return (ssize_t)syscall(SYS_pwrite64, fd, p, n, at);
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at)
{
    return pwrite_any(fd, p, n, at);
}

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at)
{
    return pwrite_any(fd, p, n, at);
}

ssize_t write(int fd, const void *p, size_t n)
{
    if (kind_of(fd) == FILE_OF_OURS) {
        ssize_t done = write_at(fd, p, n, -1);
        if (done > 0)
            lseek(fd, done, SEEK_CUR);
        return done;
    }
    return (ssize_t)syscall(SYS_write, fd, p, n);
}

static int size_any(int fd, off_t size)
{
    if (kind_of(fd) != FILE_OF_OURS)
        return (int)syscall(SYS_ftruncate, fd, size);
    pthread_mutex_lock(&mutex);
    int rc = (int)syscall(SYS_ftruncate, fd, size);
    int error = errno;
    if (rc == 0)
        put(EVENT_SIZE, fds[fd].ino, (uint64_t)size, NULL, 0);
    pthread_mutex_unlock(&mutex);
    errno = error;
    return rc;
}

int ftruncate(int fd, off_t size)
{
    return size_any(fd, size);
}

int ftruncate64(int fd, off64_t size)
{
    return size_any(fd, size);
}

static int named(enum event_type type, const char *path, const char *to, long number, mode_t mode)
{
    const char *p = below(path), *q = to != NULL ? below(to) : "";
    pthread_mutex_lock(&mutex);
    int rc = (int)(type == EVENT_MKDIR    ? syscall(number, path, mode)
                   : type == EVENT_RENAME ? syscall(number, path, to)
                                          : syscall(number, path));
    int error = errno;
    if (rc == 0 && p != NULL && q != NULL)
        put2(type, 0, 0, p, strlen(p) + 1, q, to != NULL ? strlen(q) + 1 : 0);
    pthread_mutex_unlock(&mutex);
    errno = error;
    return rc;
}

int unlink(const char *path)
{
    return named(EVENT_UNLINK, path, NULL, SYS_unlink, 0);
}

int rename(const char *path, const char *to)
{
    return named(EVENT_RENAME, path, to, SYS_rename, 0);
}

int mkdir(const char *path, mode_t mode)
{
    return named(EVENT_MKDIR, path, NULL, SYS_mkdir, mode);
}

/* ---- syncs ---- */

/* The disk of the recording may be slow and is not what counts: nothing is really synced. */
static int sync_any(int fd, long number)
{
    enum kind kind = kind_of(fd);
    if (kind != FILE_OF_OURS && kind != DIRECTORY)
        return (int)syscall(number, fd);
    pthread_mutex_lock(&mutex);
    const char *path = kind == DIRECTORY ? fds[fd].path : "";
    bool fails = kind == FILE_OF_OURS && ++syncs == fail_at;
    put(EVENT_SYNC_BEGIN, fds[fd].ino, kind == DIRECTORY, path, strlen(path));
    put(fails ? EVENT_SYNC_FAILED : EVENT_SYNC_END, fds[fd].ino, kind == DIRECTORY, path,
        strlen(path));
    pthread_mutex_unlock(&mutex);
    if (fails)
        errno = EIO;
    return fails ? -1 : 0;
}

int fsync(int fd)
{
    return sync_any(fd, SYS_fsync);
}

int fdatasync(int fildes)
{
    return sync_any(fildes, SYS_fdatasync);
}

/* ---- clients ---- */

int accept4(int fd, struct sockaddr *addr, socklen_t *len, int flags)
{
    int got = (int)syscall(SYS_accept4, fd, addr, len, flags);
    if (got >= 0 && got < FDS && log_fd >= 0) {
        pthread_mutex_lock(&mutex);
        fds[got].kind = CLIENT;
        fds[got].ino = ++clients;
        pthread_mutex_unlock(&mutex);
    }
    return got;
}

static void traffic(enum event_type type, int fd, const void *p, size_t n)
{
    if (kind_of(fd) != CLIENT || n == 0)
        return;
    if (n > TEXT_MAX)
        n = TEXT_MAX;
    int error = errno;
    pthread_mutex_lock(&mutex);
    put(type, fds[fd].ino, 0, p, n);
    pthread_mutex_unlock(&mutex);
    errno = error;
}

ssize_t recv(int fd, void *p, size_t n, int flags)
{
    ssize_t got = (ssize_t)syscall(SYS_recvfrom, fd, p, n, flags, NULL, NULL);
    if (got > 0)
        traffic(EVENT_RECV, fd, p, (size_t)got);
    return got;
}

ssize_t send(int fd, const void *p, size_t n, int flags)
{
    traffic(EVENT_SEND, fd, p, n);
    return (ssize_t)syscall(SYS_sendto, fd, p, n, flags, NULL, 0);
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    for (size_t i = 0; i < m->msg_iovlen; i++)
        traffic(EVENT_SEND, fd, m->msg_iov[i].iov_base, m->msg_iov[i].iov_len);
    return (ssize_t)syscall(SYS_sendmsg, fd, m, flags);
}

ssize_t writev(int fd, const struct iovec *v, int n)
{
    for (int i = 0; i < n; i++)
        traffic(EVENT_SEND, fd, v[i].iov_base, v[i].iov_len);
    return (ssize_t)syscall(SYS_writev, fd, v, n);
}
/* NOLINTEND(readability-inconsistent-declaration-parameter-name) */
