/* checksum.c - XXH3 checksums (64 bits) of bytes in memory and of parts of a file. The manifest of
 * a checkpoint holds one for each tensor; `xxhsum -H3` prints the same number for a whole file.
 *
 * XXH3 runs at the speed of memory, so that checking costs little next to reading.
 * Leaves out: protection against somebody who changes file and checksum together.
 */
#define XXH_INLINE_ALL
#include "io.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

uint64_t sz_checksum(const void *bytes, size_t len, uint64_t seed)
{
    return XXH3_64bits_withSeed(bytes, len, seed);
}

enum { PIECE = 1 << 20 };

/* In a thread that only checks: nobody waits for the result when the program ends. */
static _Thread_local bool is_unneeded_at_end;

/* The checksum of bytes [begin, end) of fd through a buffer of PIECE bytes: 0, or an errno; -1 if
 * the file is too short, -2 if the user interrupts. */
static int sum_range(int fd, int64_t begin, int64_t end, char *buffer, uint64_t *sum)
{
    XXH3_state_t state;
    XXH3_INITSTATE(&state);
    XXH3_64bits_reset(&state);
    while (begin < end) {
        size_t most = end - begin < PIECE ? (size_t)(end - begin) : PIECE;
        ssize_t n = pread(fd, buffer, most, (off_t)begin);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno;
        if (n == 0) return -1;
        if (sz_interrupt_pending() || (is_unneeded_at_end && sz_jobs_are_leaving())) return -2;
        XXH3_64bits_update(&state, buffer, (size_t)n);
        begin += n;
    }
    *sum = XXH3_64bits_digest(&state);
    return 0;
}

/* All ranges, each by one thread. Returns the first failure as sum_range does. */
static int sum_ranges(int fd, int n, const int64_t *begin, const int64_t *end, uint64_t *sums)
{
    int failure = 0;
#pragma omp parallel if (n > 1)
    {
        char *buffer = malloc(PIECE);
#pragma omp for schedule(dynamic)
        for (int i = 0; i < n; i++) {
            int code = buffer ? sum_range(fd, begin[i], end[i], buffer, &sums[i]) : ENOMEM;
            if (code == 0) continue;
#pragma omp critical(sz_sum_failure)
            failure = code;
        }
        free(buffer);
    }
    return failure;
}

/* Opens a regular file and says how long it is; -1 with a message. */
static int open_regular(const char *path, int64_t *bytes)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return sz_fail("%s: %s", path, strerror(errno));
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode)) {
        *bytes = (int64_t)st.st_size;
        return fd;
    }
    close(fd);
    return sz_fail("%s: not a regular file", path);
}

int sz_file_sums(const char *path, int n, const int64_t *begin, const int64_t *end, int sync,
                 uint64_t *sums)
{
    int64_t bytes = 0;
    int fd = open_regular(path, &bytes);
    if (fd < 0) return -1;

    /* The file must hold every range. */
    int code = 0;
    for (int i = 0; i < n; i++)
        if (begin[i] < 0 || begin[i] > end[i] || end[i] > bytes) code = -1;
    if (code == 0 && n > 0) code = sum_ranges(fd, n, begin, end, sums);
    if (code == 0 && sync && fsync(fd) != 0) code = errno;
    close(fd);

    if (code == -1) return sz_fail("%s: %lld bytes are too few", path, (long long)bytes);
    if (code == -2) return sz_fail("interrupted");
    return code ? sz_fail("%s: %s", path, strerror(code)) : 0;
}

/* ---- in the background ---- */
struct sums_job {
    char *path;
    int count;
    int64_t *ranges; /* count begins, then count ends */
    uint64_t *sums;
};

static int run_sums(void *context)
{
    struct sums_job *s = context;
    is_unneeded_at_end = true;
    int code = sz_file_sums(s->path, s->count, s->ranges, s->ranges + s->count, 0, s->sums);
    is_unneeded_at_end = false;
    return code;
}

static void free_sums(void *context)
{
    struct sums_job *s = context;
    free(s->path);
    free(s->ranges);
    free(s);
}

sz_job *sz_file_sums_start(const char *path, int n, const int64_t *begin, const int64_t *end,
                           uint64_t *sums)
{
    struct sums_job *s = calloc(1, sizeof *s);
    if (!s) return sz_null("out of memory");
    s->path = strdup(path);
    s->ranges = malloc((2 * (size_t)n + 1) * sizeof *s->ranges);
    s->sums = sums;
    s->count = n;
    if (!s->path || !s->ranges) {
        free_sums(s);
        return sz_null("out of memory");
    }
    for (int i = 0; i < n; i++) {
        s->ranges[i] = begin[i];
        s->ranges[n + i] = end[i];
    }
    return sz_job_start(run_sums, free_sums, s, false);
}
