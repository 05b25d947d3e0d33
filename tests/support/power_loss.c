/* power_loss.c - a library for LD_PRELOAD that writes down what a program does to a folder, so that
 * a test can build the folder as it would be after a loss of power (test_power_loss.lua).
 *
 * POWER_LOSS_FOLDER is the folder that is watched, POWER_LOSS_LOG a folder for the record: `events`
 * has one event a line, with its parts between tabs, and a file N the bytes of a file at the event
 * "sync PATH N". Several processes share a record.
 *
 *     create PATH    mkdir PATH    rename FROM TO    remove PATH    sync PATH N    syncdir PATH
 *
 * The C library's own calls are invisible to it, so fopen and remove stand here with open and
 * unlink. Leaves out: links, truncation, writes through a mapping.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PATH = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int synced; /* the number of this process's last file in the record */

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* The absolute form of a path. */
static void absolute(const char *path, char *out)
{
    char here[PATH / 2];
    out[0] = 0;
    if (path[0] != '/' && !getcwd(here, sizeof here)) return;
    if (path[0] == '/') snprintf(out, PATH, "%s", path);
    else snprintf(out, PATH, "%s/%s", here, path);
}

static int is_watched(const char *path)
{
    const char *folder = getenv("POWER_LOSS_FOLDER");
    return folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int open_record(const char *name)
{
    char path[PATH];
    snprintf(path, sizeof path, "%s/%s", getenv("POWER_LOSS_LOG"), name);
    return (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND, 0666);
}

/* Adds a line to the record; the caller holds the lock. */
static void add(const char *what, const char *a, const char *b)
{
    char line[3 * PATH];
    int n = snprintf(line, sizeof line, "%s\t%s%s%s\n", what, a, b ? "\t" : "", b ? b : "");
    int fd = open_record("events");
    if (fd < 0 || syscall(SYS_write, fd, line, n) != n) abort();
    close(fd);
}

static void event(const char *what, const char *path, const char *to)
{
    char a[PATH];
    char b[PATH] = "";
    absolute(path, a);
    if (to) absolute(to, b);
    if (!is_watched(a) && !is_watched(b)) return;
    pthread_mutex_lock(&lock);
    add(what, a, to ? b : NULL);
    pthread_mutex_unlock(&lock);
}

/* ---- new files ---- */

static int makes_file(const char *path, int flags)
{
    return (flags & O_TRUNC) || ((flags & O_CREAT) && access(path, F_OK) != 0);
}

static int open_file(const char *path, int flags, int mode)
{
    int is_new = makes_file(path, flags);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0 && is_new) event("create", path, NULL);
    return fd;
}

int open(const char *path, int flags, ...)
{
    va_list list;
    va_start(list, flags);
    int mode = flags & O_CREAT ? va_arg(list, int) : 0;
    va_end(list);
    return open_file(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
    va_list list;
    va_start(list, flags);
    int mode = flags & O_CREAT ? va_arg(list, int) : 0;
    va_end(list);
    return open_file(path, flags, mode);
}

FILE *fopen(const char *path, const char *mode)
{
    int is_new = mode[0] == 'w' || (mode[0] == 'a' && access(path, F_OK) != 0);
    FILE *f = REAL(fopen)(path, mode);
    if (f && is_new) event("create", path, NULL);
    return f;
}

FILE *fopen64(const char *path, const char *mode) { return fopen(path, mode); }

/* ---- names ---- */

int mkdir(const char *path, mode_t mode)
{
    int rc = REAL(mkdir)(path, mode);
    if (rc == 0) event("mkdir", path, NULL);
    return rc;
}

int rename(const char *from, const char *to)
{
    int rc = REAL(rename)(from, to);
    if (rc == 0) event("rename", from, to);
    return rc;
}

int unlink(const char *path)
{
    int rc = REAL(unlink)(path);
    if (rc == 0) event("remove", path, NULL);
    return rc;
}

int rmdir(const char *path)
{
    int rc = REAL(rmdir)(path);
    if (rc == 0) event("remove", path, NULL);
    return rc;
}

int remove(const char *path)
{
    int rc = REAL(remove)(path);
    if (rc == 0) event("remove", path, NULL);
    return rc;
}

/* ---- what is on the disk ---- */

/* Copies the file as it is now into the record. */
static void copy(const char *path, const char *name)
{
    char bytes[65536];
    int from = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY, 0);
    int to = open_record(name);
    ssize_t n = 0;
    while (from >= 0 && to >= 0 && (n = read(from, bytes, sizeof bytes)) > 0)
        if (write(to, bytes, (size_t)n) != n) abort();
    close(from);
    close(to);
}

int fsync(int fd)
{
    char link[64];
    char path[PATH];
    char number[32];
    struct stat st;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    int rc = (int)syscall(SYS_fsync, fd);
    if (n < 0 || rc != 0 || fstat(fd, &st) != 0) return rc;
    path[n] = 0;
    if (!is_watched(path)) return rc;
    pthread_mutex_lock(&lock);
    if (S_ISDIR(st.st_mode)) {
        add("syncdir", path, NULL);
    } else {
        snprintf(number, sizeof number, "%d-%d", (int)getpid(), ++synced);
        copy(path, number);
        add("sync", path, number);
    }
    pthread_mutex_unlock(&lock);
    return rc;
}
