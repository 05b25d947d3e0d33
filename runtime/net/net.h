/* net.h - HTTP requests that run in parallel, and the sums that files on a hub are named by.
 *
 *     sz_http *http = sz_http_open();
 *     sz_transfer *t = sz_http_start(http, "GET", url, "Accept: *\n", 10000, 10);
 *     while (sz_http_poll(http, 100) > 0) ;
 *     if (sz_http_finished(http) == t && sz_transfer_status(t) == 200)
 *         use(sz_transfer_body(t, &n), n);
 *     sz_transfer_free(t);
 *     sz_http_close(http);
 *
 * Conventions as in sz.h: NULL or -1 is a failure, and sz_last_error() has its message. A request
 * that failed on the network is no failure of these functions: sz_transfer_error() says why. One
 * thread uses all of it. LuaJIT reads the part between the marks.
 */
#ifndef SZ_NET_H
#define SZ_NET_H

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)
/* ffi begin */

typedef struct sz_digest sz_digest;
typedef struct sz_http sz_http;
typedef struct sz_transfer sz_transfer;

/* ---- sums ----
 * blob < 0: SHA-256 of what is added. blob >= 0: the SHA-1 that git gives to a file of that many
 * bytes. The caller frees it. */
sz_digest *sz_digest_new(int64_t blob);
void sz_digest_free(sz_digest *d);
int sz_digest_add(sz_digest *d, const void *bytes, size_t len);
/* Forgets what was added. */
int sz_digest_reset(sz_digest *d);
/* Adds bytes [begin, end) of a file; fails with "interrupted" on Ctrl-C. */
int sz_digest_add_file(sz_digest *d, int fd, int64_t begin, int64_t end);
/* The sum in hexadecimal digits, borrowed. Nothing may be added afterwards. */
const char *sz_digest_hex(sz_digest *d);

/* ---- transfers ---- */
/* Opens libcurl the first time. */
sz_http *sz_http_open(void);
/* Stops and frees all transfers. It may wait for a name that is being looked up. */
void sz_http_close(sz_http *h);
/* Starts a request; method is GET or HEAD. headers: lines "Name: value\n". It fails after
 * connect_ms without a connection and after idle_seconds with less than one byte a second.
 * Redirects are not followed. The caller frees it, before or after its end. */
sz_transfer *sz_http_start(sz_http *h, const char *method, const char *url, const char *headers,
                           int connect_ms, int idle_seconds);
/* The body of a reply 200 or 206 goes into fd at `offset` bytes and is added to d, which may be
 * NULL; both are borrowed. A reply 200 starts the file again, whatever the offset. more than
 * `most` bytes are a failure. Call it right after sz_http_start. */
void sz_transfer_to_file(sz_transfer *t, int fd, int64_t offset, int64_t most, sz_digest *d);
/* Works for at most ms milliseconds. Returns how many transfers still run; fails with
 * "interrupted" on Ctrl-C. */
int sz_http_poll(sz_http *h, int ms);
/* A transfer that has ended and was not returned before; NULL if there is none. Borrowed. */
sz_transfer *sz_http_finished(sz_http *h);
void sz_transfer_free(sz_transfer *t);

/* What came of it. Strings are borrowed and live as long as the transfer. */
int sz_transfer_status(sz_transfer *t);           /* of HTTP; 0 without a reply */
const char *sz_transfer_error(sz_transfer *t);    /* NULL if the reply is whole */
int sz_transfer_is_local(sz_transfer *t);         /* 1: the error is of our file, as a full disk */
const char *sz_transfer_headers(sz_transfer *t);  /* lines of the last reply */
const char *sz_transfer_redirect(sz_transfer *t); /* where a 3xx leads, absolute; or NULL */
const char *sz_transfer_body(sz_transfer *t, size_t *len); /* what did not go into the file */
int64_t sz_transfer_position(sz_transfer *t);              /* bytes that the file has so far */

/* ---- files ---- */
/* Takes the exclusive lock of an open file (flock). Returns 0, or 1 if somebody else has it. */
int sz_lock_file(int fd);

/* ffi end */
#pragma GCC visibility pop
#endif
