/* faults.c - makes the n-th call of a kind fail, in any process that preloads this library.
 *
 *   LD_PRELOAD=build/tests/faults.so ./segzero ...
 *   void faults_arm(int kind, long n)     call n (from 0) of the kind fails; of writes all that
 *                                         follow, too, as on a full disk
 *   long faults_disarm(void)              how many calls of the kind there were since
 *
 * Kinds: FAULT_ALLOC memory that the core and the image libraries ask for (not LuaJIT, oneDNN,
 * OpenMP or the C library itself, whose memory is not ours to check); FAULT_WRITE bytes written to
 * files: write, pwrite, fwrite, fflush, fclose, ftruncate, fsync; half of the first failing write
 * is done; FAULT_NAME changes of folders: rename, mkdir, unlink, rmdir, files made by open and
 * fopen. Standard output and error never fail. Leaves out: reads, mmap.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { FAULT_ALLOC, FAULT_WRITE, FAULT_NAME, MAX_RANGES = 64 };

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static atomic_int armed = -1;
static atomic_long left, seen;

/* The code whose allocations may fail. */
static struct {
    char *from, *to;
} ranges[MAX_RANGES];
static int range_count;

static void find_ranges(void)
{
    static const char *const names[] = { "libsegzero", "libpng", "libjpeg", "libwebp" };
    char line[512];
    range_count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && fgets(line, sizeof line, maps)) {
        char *from;
        char *to;
        char flags[8];
        if (sscanf(line, "%p-%p %7s", (void **)&from, (void **)&to, flags) != 3) continue;
        if (!strchr(flags, 'x') || range_count == MAX_RANGES) continue;
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            if (!strstr(line, names[i])) continue;
            ranges[range_count].from = from;
            ranges[range_count++].to = to;
            break;
        }
    }
    if (maps) fclose(maps);
}

void faults_arm(int kind, long n)
{
    find_ranges();
    atomic_store(&seen, 0);
    atomic_store(&left, n);
    atomic_store(&armed, kind);
}

long faults_disarm(void)
{
    atomic_store(&armed, -1);
    return atomic_load(&seen);
}

/* Whether this call fails. A disk that is full stays full. */
static int fails(int kind)
{
    if (atomic_load(&armed) != kind) return 0;
    atomic_fetch_add(&seen, 1);
    long n = atomic_fetch_sub(&left, 1);
    return kind == FAULT_WRITE ? n <= 0 : n == 0;
}

/* Whether this call fails, for a stream that is written to a file. */
static int stream_fails(FILE *f)
{
    return f && __fwritable(f) && fileno(f) > STDERR_FILENO && fails(FAULT_WRITE);
}

static int ours(const char *caller)
{
    for (int i = 0; i < range_count; i++)
        if (caller >= ranges[i].from && caller < ranges[i].to) return 1;
    return 0;
}

/* Whether this allocation fails. */
static int starves(const void *caller)
{
    if (atomic_load(&armed) != FAULT_ALLOC || !ours(caller) || !fails(FAULT_ALLOC)) return 0;
    errno = ENOMEM;
    return 1;
}

#define CALLER __builtin_return_address(0)
#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    void *f = dlsym(RTLD_NEXT, name);
    if (!f) abort();
    return f;
}

/* ---- memory ---- */

void *malloc(size_t size) { return starves(CALLER) ? NULL : __libc_malloc(size); }

void *calloc(size_t n, size_t size) { return starves(CALLER) ? NULL : __libc_calloc(n, size); }

void *realloc(void *p, size_t size) { return starves(CALLER) ? NULL : __libc_realloc(p, size); }

void *aligned_alloc(size_t align, size_t size)
{
    return starves(CALLER) ? NULL : __libc_memalign(align, size);
}

int posix_memalign(void **p, size_t align, size_t size)
{
    if (starves(CALLER)) return ENOMEM;
    *p = __libc_memalign(align, size);
    return *p ? 0 : ENOMEM;
}

/* ---- bytes of files ---- */

static int full(void)
{
    errno = ENOSPC;
    return -1;
}

ssize_t write(int fd, const void *p, size_t n)
{
    if (fd > STDERR_FILENO && fails(FAULT_WRITE)) {
        /* A disk that becomes full takes what fits. */
        if (n > 1 && atomic_load(&left) == -1) return REAL(write)(fd, p, n / 2);
        return full();
    }
    return REAL(write)(fd, p, n);
}

ssize_t pwrite(int fd, const void *p, size_t n, off_t at)
{
    if (fails(FAULT_WRITE)) return full();
    return REAL(pwrite)(fd, p, n, at);
}

ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at)
{
    if (fails(FAULT_WRITE)) return full();
    return REAL(pwrite64)(fd, p, n, at);
}

size_t fwrite(const void *p, size_t size, size_t n, FILE *f)
{
    if (stream_fails(f)) {
        full();
        return 0;
    }
    return REAL(fwrite)(p, size, n, f);
}

int fflush(FILE *f)
{
    if (stream_fails(f)) return full();
    return REAL(fflush)(f);
}

int fclose(FILE *f)
{
    int failed = stream_fails(f);
    int result = REAL(fclose)(f);
    return failed ? full() : result;
}

int ftruncate(int fd, off_t size)
{
    if (fails(FAULT_WRITE)) return full();
    return REAL(ftruncate)(fd, size);
}

int fsync(int fd)
{
    if (fails(FAULT_WRITE)) {
        errno = EIO;
        return -1;
    }
    return REAL(fsync)(fd);
}

int fdatasync(int fd)
{
    if (fails(FAULT_WRITE)) {
        errno = EIO;
        return -1;
    }
    return REAL(fdatasync)(fd);
}

/* ---- names in folders ---- */

int rename(const char *from, const char *to)
{
    return fails(FAULT_NAME) ? full() : REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    return fails(FAULT_NAME) ? full() : REAL(mkdir)(path, mode);
}

int link(const char *from, const char *to)
{
    return fails(FAULT_NAME) ? full() : REAL(link)(from, to);
}

int unlink(const char *path)
{
    if (fails(FAULT_NAME)) {
        errno = EACCES;
        return -1;
    }
    return REAL(unlink)(path);
}

int rmdir(const char *path)
{
    if (fails(FAULT_NAME)) {
        errno = EACCES;
        return -1;
    }
    return REAL(rmdir)(path);
}

/* open and open64 differ in a flag that 64-bit systems do not have. mode: read only where a file
 * may be made. */
#define OPEN(name) \
    int name(const char *path, int flags, ...) \
    { \
        mode_t mode = 0; \
        if (flags & O_CREAT) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = va_arg(rest, mode_t); \
            va_end(rest); \
            if (fails(FAULT_NAME)) return full(); \
        } \
        return REAL(name)(path, flags, mode); \
    }

OPEN(open)
OPEN(open64)

FILE *fopen(const char *path, const char *mode)
{
    if (!strchr(mode, 'r') && fails(FAULT_NAME)) {
        full();
        return NULL;
    }
    return REAL(fopen)(path, mode);
}

FILE *fopen64(const char *path, const char *mode)
{
    if (!strchr(mode, 'r') && fails(FAULT_NAME)) {
        full();
        return NULL;
    }
    return REAL(fopen64)(path, mode);
}
