/* digest.c - SHA-256, and the SHA-1 that git gives to a file ("blob N\0" before its bytes), by
 * libcrypto.
 *
 * libcrypto comes with libcurl's package and is opened when the first sum is made. Its headers are
 * a package of their own, so the seven functions that are used are declared here.
 * Leaves out: protection against a hub that lies about its own sums.
 */
#include "net.h"
#include "graph.h"
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

enum { SUM_BYTES = 64, PIECE = 1 << 20 };

struct sz_digest {
    void *context;
    int64_t blob;                /* the size of a git blob; -1: SHA-256 */
    char hex[2 * SUM_BYTES + 1]; /* "" until the sum is asked for */
};

static struct {
    void *(*new)(void);
    void (*free)(void *);
    int (*init)(void *, const void *, void *);
    int (*update)(void *, const void *, size_t);
    int (*final)(void *, unsigned char *, unsigned *);
    const void *(*sha256)(void);
    const void *(*sha1)(void);
} crypto;

static int open_crypto(void)
{
    static const char *const names[] = { "libcrypto.so.3", "libcrypto.so.1.1" };
    void *lib = NULL;

    if (crypto.new) return 0;
    for (int i = 0; i < 2 && !lib; i++) lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        return sz_fail("files of a hub cannot be checked: libcrypto.so.3 does not load (Debian's "
                       "package libssl3)");
    *(void **)&crypto.free = dlsym(lib, "EVP_MD_CTX_free");
    *(void **)&crypto.init = dlsym(lib, "EVP_DigestInit_ex");
    *(void **)&crypto.update = dlsym(lib, "EVP_DigestUpdate");
    *(void **)&crypto.final = dlsym(lib, "EVP_DigestFinal_ex");
    *(void **)&crypto.sha256 = dlsym(lib, "EVP_sha256");
    *(void **)&crypto.sha1 = dlsym(lib, "EVP_sha1");
    if (!crypto.free || !crypto.init || !crypto.update || !crypto.final || !crypto.sha256 ||
        !crypto.sha1)
        return sz_fail("libcrypto has not the functions of OpenSSL 1.1 or later");
    *(void **)&crypto.new = dlsym(lib, "EVP_MD_CTX_new");
    return crypto.new ? 0 : sz_fail("libcrypto has no EVP_MD_CTX_new");
}

int sz_digest_reset(sz_digest *d)
{
    const void *kind = d->blob < 0 ? crypto.sha256() : crypto.sha1();
    char header[32];

    d->hex[0] = 0;
    if (crypto.init(d->context, kind, NULL) != 1) return sz_fail("libcrypto cannot start a sum");
    if (d->blob < 0) return 0;
    int n = snprintf(header, sizeof header, "blob %lld", (long long)d->blob);
    return sz_digest_add(d, header, (size_t)n + 1);
}

sz_digest *sz_digest_new(int64_t blob)
{
    if (open_crypto() != 0) return NULL;
    sz_digest *d = calloc(1, sizeof *d);
    if (d) d->context = crypto.new();
    if (!d || !d->context) {
        free(d);
        sz_fail("out of memory");
        return NULL;
    }
    d->blob = blob;
    if (sz_digest_reset(d) == 0) return d;
    sz_digest_free(d);
    return NULL;
}

void sz_digest_free(sz_digest *d)
{
    if (!d) return;
    crypto.free(d->context);
    free(d);
}

int sz_digest_add(sz_digest *d, const void *bytes, size_t len)
{
    if (d->hex[0]) return sz_fail("the sum is complete");
    if (crypto.update(d->context, bytes, len) == 1) return 0;
    return sz_fail("libcrypto cannot add to a sum");
}

int sz_digest_add_file(sz_digest *d, int fd, int64_t begin, int64_t end)
{
    char *buffer = malloc(PIECE);
    int64_t done = begin;
    int code = 0;

    if (!buffer) return sz_fail("out of memory");
    while (code == 0 && done < end) {
        size_t most = end - done < PIECE ? (size_t)(end - done) : PIECE;
        ssize_t n = pread(fd, buffer, most, (off_t)done);
        if (sz_interrupt_pending()) code = sz_fail("interrupted");
        else if (n < 0 && errno == EINTR) continue;
        else if (n < 0) code = sz_fail("%s", strerror(errno));
        else if (n == 0) code = sz_fail("the file is shorter than %lld bytes", (long long)end);
        else code = sz_digest_add(d, buffer, (size_t)n);
        done += n;
    }
    free(buffer);
    return code;
}

const char *sz_digest_hex(sz_digest *d)
{
    unsigned char sum[SUM_BYTES];
    unsigned n = 0;

    if (d->hex[0]) return d->hex;
    if (crypto.final(d->context, sum, &n) != 1) n = 0;
    if (n == 0 || n > SUM_BYTES) {
        sz_fail("libcrypto cannot finish a sum");
        return NULL;
    }
    for (unsigned i = 0; i < n; i++) snprintf(d->hex + 2 * i, 3, "%02x", sum[i]);
    return d->hex;
}

int sz_lock_file(int fd)
{
    for (;;) {
        if (flock(fd, LOCK_EX | LOCK_NB) == 0) return 0;
        if (errno == EWOULDBLOCK) return 1;
        if (errno != EINTR) return sz_fail("%s", strerror(errno));
        if (sz_interrupt_pending()) return sz_fail("interrupted");
    }
}
