/* http.c - HTTP transfers in parallel by libcurl: bodies into memory, or into a file from an
 * offset.
 *
 * libcurl is opened at the first request, because loading it and its libraries takes longer than
 * the rest of the program's start. Proxies (https_proxy, no_proxy) are libcurl's own. Redirects are
 * not followed: the caller decides what a request to another host may carry.
 * Leaves out: what requests mean, retries, redirects (lua/segzero/hub).
 */
#define _GNU_SOURCE
#include "graph.h"
#include "net.h"
#include <curl/curl.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

enum {
    MOST_BODY = 64 << 20,   /* bytes of a body in memory: lists of files are the longest */
    MOST_HEADERS = 1 << 18, /* bytes of a reply's headers */
    RECEIVE = 256 << 10,    /* bytes of libcurl's buffer */
    WRITTEN = 64 << 20      /* bytes between two requests to write a file */
};

typedef struct {
    char *bytes;
    size_t len;
    size_t room;
} text;

struct sz_transfer {
    CURL *easy;
    sz_http *http;
    struct curl_slist *request; /* its headers */
    text headers;
    text body;
    char *redirect;
    char error[CURL_ERROR_SIZE];  /* what the user is told */
    char detail[CURL_ERROR_SIZE]; /* libcurl's words */
    int has_failed;
    int is_local;
    int is_over;
    int is_reported;
    long status;

    int fd; /* -1: the body stays in memory */
    int is_checked;
    int64_t position;
    int64_t written; /* up to where the system has been asked to write */
    int64_t most;
    int64_t begins; /* the first byte of a partial reply, -1: none stated */
    sz_digest *digest;
    sz_transfer *next;
};

struct sz_http {
    CURLM *multi;
    sz_transfer *first; /* all transfers */
};

/* ---- libcurl ---- */
#define FUNCTIONS(X) \
    X(easy_init) \
    X(easy_setopt) \
    X(easy_getinfo) \
    X(easy_strerror) \
    X(easy_cleanup) \
    X(slist_append) \
    X(slist_free_all) \
    X(multi_init) \
    X(multi_setopt) \
    X(multi_add_handle) \
    X(multi_remove_handle) \
    X(multi_perform) \
    X(multi_poll) \
    X(multi_info_read) \
    X(multi_cleanup)

/* libcurl's header makes macros of these names, which check the types of their arguments. */
#undef curl_easy_setopt
#undef curl_easy_getinfo
#undef curl_multi_setopt
#define POINTER(name) __typeof__(curl_##name) *name;
static struct {
    FUNCTIONS(POINTER)
    int is_open;
} curl;

static int open_curl(void)
{
    static const char *const names[] = { "libcurl.so.4", "libcurl-gnutls.so.4" };
    void *lib = NULL;
    const char *absent = NULL;

    if (curl.is_open) return 0;
    for (int i = 0; i < 2 && !lib; i++) lib = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (!lib)
        return sz_fail("nothing can be downloaded: libcurl.so.4 does not load (Debian's package "
                       "libcurl4)");
#define FIND(name) \
    *(void **)&curl.name = dlsym(lib, "curl_" #name); \
    if (!curl.name) absent = "curl_" #name;
    FUNCTIONS(FIND)
    if (absent)
        return sz_fail("libcurl is too old: it has no %s (7.66 or later is needed)", absent);
    curl.is_open = 1;
    return 0;
}

sz_http *sz_http_open(void)
{
    if (open_curl() != 0) return NULL;
    sz_http *h = calloc(1, sizeof *h);
    if (h) h->multi = curl.multi_init();
    if (h && h->multi) return h;
    free(h);
    sz_fail("out of memory");
    return NULL;
}

void sz_http_close(sz_http *h)
{
    if (!h) return;
    while (h->first) sz_transfer_free(h->first);
    curl.multi_cleanup(h->multi);
    free(h);
}

/* ---- what a reply brings ---- */
static int append(text *t, const char *bytes, size_t len, size_t most)
{
    if (t->len + len > most) return -1;
    if (t->len + len + 1 > t->room) {
        size_t room = 2 * (t->len + len) + 256;
        char *grown = realloc(t->bytes, room);
        if (!grown) return -1;
        t->bytes = grown;
        t->room = room;
    }
    memcpy(t->bytes + t->len, bytes, len);
    t->len += len;
    t->bytes[t->len] = 0;
    return 0;
}

/* A failure found here; libcurl then ends the transfer. */
static size_t refuse(sz_transfer *t, int is_local, const char *why)
{
    t->has_failed = 1;
    t->is_local = is_local;
    snprintf(t->error, sizeof t->error, "%s", why);
    return 0;
}

/* One line of headers. A new status line begins another reply: the last one counts. */
static size_t on_header(char *bytes, size_t size, size_t count, void *user)
{
    static const char range[] = "Content-Range: bytes ";
    sz_transfer *t = user;
    size_t len = size * count;

    if (len >= 5 && memcmp(bytes, "HTTP/", 5) == 0) {
        t->headers.len = 0;
        t->begins = -1;
    }
    if (len > sizeof range && strncasecmp(bytes, range, sizeof range - 1) == 0) {
        long long begins = -1;
        char line[64];
        snprintf(line, sizeof line, "%.*s", (int)(len - sizeof range + 1),
                 bytes + sizeof range - 1);
        if (sscanf(line, "%lld-", &begins) == 1) t->begins = begins;
    }
    if (append(&t->headers, bytes, len, MOST_HEADERS) == 0) return len;
    return refuse(t, 0, "the reply has too many headers");
}

/* At the first byte of a body: does it belong into the file, and where? */
static int check_start(sz_transfer *t)
{
    t->is_checked = 1;
    curl.easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &t->status);
    if (t->status == 206) {
        if (t->begins == t->position) return 0;
        refuse(t, 0, "the reply is another part of the file than the one that was asked for");
        return -1;
    }
    if (t->status != 200 || t->position == 0) return 0;

    /* The server sends the whole file, so it starts again. */
    t->position = 0;
    t->written = 0;
    if (ftruncate(t->fd, 0) == 0) return t->digest ? sz_digest_reset(t->digest) : 0;
    refuse(t, 1, strerror(errno));
    return -1;
}

/* The system begins to write what has come, so that the sync at the end does not take long. */
static void begin_writing(sz_transfer *t)
{
    if (t->position - t->written < WRITTEN) return;
    sync_file_range(t->fd, t->written, t->position - t->written, SYNC_FILE_RANGE_WRITE);
    t->written = t->position;
}

static size_t write_file(sz_transfer *t, const char *bytes, size_t len)
{
    size_t done = 0;

    if (t->position + (int64_t)len > t->most)
        return refuse(t, 0, "the server sent more bytes than the file has");
    while (done < len) {
        ssize_t n = pwrite(t->fd, bytes + done, len - done, (off_t)t->position);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return refuse(t, 1, n < 0 ? strerror(errno) : "nothing could be written");
        if (t->digest && sz_digest_add(t->digest, bytes + done, (size_t)n) != 0)
            return refuse(t, 1, sz_last_error());
        done += (size_t)n;
        t->position += n;
    }
    begin_writing(t);
    return len;
}

static size_t on_body(char *bytes, size_t size, size_t count, void *user)
{
    sz_transfer *t = user;
    size_t len = size * count;

    if (sz_interrupt_pending()) return 0;
    if (t->fd >= 0) {
        if (!t->is_checked && check_start(t) != 0) return 0;
        if (t->status == 200 || t->status == 206) return write_file(t, bytes, len);
    }
    if (append(&t->body, bytes, len, MOST_BODY) == 0) return len;
    return refuse(t, 0, "the reply is too long");
}

/* ---- transfers ---- */
/* A file of certificates that the user names, for a proxy that has its own; or NULL. */
static const char *certificates(void)
{
    static const char *const names[] = { "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE" };

    for (int i = 0; i < 3; i++) {
        const char *path = getenv(names[i]);
        if (path && *path) return path;
    }
    return NULL;
}

static int set_options(sz_transfer *t, const char *method, const char *url, int connect_ms,
                       int idle_seconds)
{
    int code = 0;
#define SET(option, value) code |= curl.easy_setopt(t->easy, CURLOPT_##option, value)
    SET(URL, url);
    SET(PROTOCOLS_STR, "http,https");
    SET(HTTPHEADER, t->request);
    SET(NOBODY, strcmp(method, "HEAD") == 0 ? 1L : 0L);
    SET(HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1); /* a connection for each file */
    SET(NOSIGNAL, 1L);
    SET(ERRORBUFFER, t->detail);
    SET(PRIVATE, t);
    SET(CONNECTTIMEOUT_MS, (long)connect_ms);
    SET(LOW_SPEED_LIMIT, 1L);
    SET(LOW_SPEED_TIME, (long)idle_seconds);
    SET(BUFFERSIZE, (long)RECEIVE);
    SET(HEADERFUNCTION, on_header);
    SET(HEADERDATA, t);
    SET(WRITEFUNCTION, on_body);
    SET(WRITEDATA, t);
    if (certificates()) SET(CAINFO, certificates());
    return code;
}

/* The lines of `headers` as libcurl's list; -1 when memory is out. */
static int set_headers(sz_transfer *t, const char *headers)
{
    while (*headers) {
        size_t len = strcspn(headers, "\n");
        char *line = strndup(headers, len);
        struct curl_slist *longer = line ? curl.slist_append(t->request, line) : NULL;
        free(line);
        if (!longer) return sz_fail("out of memory");
        t->request = longer;
        headers += len;
        if (*headers) headers++;
    }
    return 0;
}

sz_transfer *sz_http_start(sz_http *h, const char *method, const char *url, const char *headers,
                           int connect_ms, int idle_seconds)
{
    sz_transfer *t = calloc(1, sizeof *t);

    if (!t) {
        sz_fail("out of memory");
        return NULL;
    }
    t->fd = -1;
    t->begins = -1;
    t->http = h;
    t->next = h->first;
    h->first = t;
    t->easy = curl.easy_init();
    if (!t->easy || set_headers(t, headers) != 0 ||
        set_options(t, method, url, connect_ms, idle_seconds) != 0 ||
        curl.multi_add_handle(h->multi, t->easy) != 0) {
        sz_transfer_free(t);
        sz_fail("libcurl does not take the request for %s", url);
        return NULL;
    }
    return t;
}

void sz_transfer_to_file(sz_transfer *t, int fd, int64_t offset, int64_t most, sz_digest *d)
{
    char range[32];

    t->fd = fd;
    t->position = offset;
    t->written = offset;
    t->most = most;
    t->digest = d;
    if (offset == 0) return;
    snprintf(range, sizeof range, "%lld-", (long long)offset);
    curl.easy_setopt(t->easy, CURLOPT_RANGE, range);
}

/* Notes how the transfer of a message from libcurl ended. */
static void note_end(CURLMsg *message)
{
    char *private = NULL;
    char *redirect = NULL;

    curl.easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &private);
    sz_transfer *t = (sz_transfer *)private;
    t->is_over = 1;
    curl.easy_getinfo(t->easy, CURLINFO_RESPONSE_CODE, &t->status);
    curl.easy_getinfo(t->easy, CURLINFO_REDIRECT_URL, &redirect);
    if (redirect) t->redirect = strdup(redirect);
    if (message->data.result == CURLE_OK || t->has_failed) return;
    t->has_failed = 1;
    const char *words = t->detail[0] ? t->detail : curl.easy_strerror(message->data.result);
    snprintf(t->error, sizeof t->error, "%s", words);
}

int sz_http_poll(sz_http *h, int ms)
{
    int running = 0;
    int waiting = 0;
    CURLMsg *message;

    CURLMcode code = curl.multi_perform(h->multi, &running);
    if (code == CURLM_OK && running > 0) {
        code = curl.multi_poll(h->multi, NULL, 0, ms, NULL);
        if (code == CURLM_OK) code = curl.multi_perform(h->multi, &running);
    }
    if (sz_interrupt_pending()) return sz_fail("interrupted");
    if (code != CURLM_OK) return sz_fail("libcurl failed with code %d", (int)code);
    while ((message = curl.multi_info_read(h->multi, &waiting)))
        if (message->msg == CURLMSG_DONE) note_end(message);
    return running;
}

sz_transfer *sz_http_finished(sz_http *h)
{
    for (sz_transfer *t = h->first; t; t = t->next) {
        if (!t->is_over || t->is_reported) continue;
        t->is_reported = 1;
        return t;
    }
    return NULL;
}

void sz_transfer_free(sz_transfer *t)
{
    if (!t) return;
    sz_transfer **link = &t->http->first;
    while (*link && *link != t) link = &(*link)->next;
    if (*link) *link = t->next;
    if (t->easy) {
        curl.multi_remove_handle(t->http->multi, t->easy);
        curl.easy_cleanup(t->easy);
    }
    curl.slist_free_all(t->request);
    free(t->headers.bytes);
    free(t->body.bytes);
    free(t->redirect);
    free(t);
}

/* ---- questions ---- */
int sz_transfer_status(sz_transfer *t) { return (int)t->status; }
const char *sz_transfer_error(sz_transfer *t) { return t->has_failed ? t->error : NULL; }
int sz_transfer_is_local(sz_transfer *t) { return t->is_local; }
const char *sz_transfer_headers(sz_transfer *t) { return t->headers.bytes ? t->headers.bytes : ""; }
const char *sz_transfer_redirect(sz_transfer *t) { return t->redirect; }
int64_t sz_transfer_position(sz_transfer *t) { return t->position; }

const char *sz_transfer_body(sz_transfer *t, size_t *len)
{
    *len = t->body.len;
    return t->body.bytes ? t->body.bytes : "";
}
