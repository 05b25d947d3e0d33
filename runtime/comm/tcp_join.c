/* tcp_join.c - how the ranks of a job find each other over TCP.
 *
 * Rank 0 listens at the address that the launcher names. Every other rank opens a port of its own,
 * connects to rank 0 and says hello: its rank, the number of ranks, its machine and its port. When
 * all have come, rank 0 sends its own hello and the list of them to each. Then every rank connects
 * to the ranks below it and is connected to by those above. The sockets to rank 0 stay as they are.
 *
 * Hellos are read from several connections at a time, so a stranger that connects and says nothing
 * keeps no rank waiting. What says something else is disconnected. All ranks have the same byte
 * order.
 * Leaves out: what is sent afterwards (tcp.c).
 */
#define _GNU_SOURCE
#include "comm/tcp.h"
#include "sz.h"
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static const uint64_t HELLO = 0x315f6f72657a7367; /* "gszero_1" */
static const double PATIENCE = 300;               /* seconds to wait for all ranks */
static const double GREETING = 5;                 /* seconds to wait for a hello */

typedef struct {
    uint64_t magic;
    int32_t version, rank, size, port;
    char host[SZ_HOST_NAME];
    char release[32]; /* of segzero */
} hello;

/* What rank 0 tells about a rank: where the others can reach it. */
typedef struct {
    char host[SZ_HOST_NAME];
    struct sockaddr_storage address;
    uint32_t length; /* of the address */
} place;

/* A connection whose hello has not come as a whole. */
typedef struct {
    int fd;
    double end;
    size_t got; /* bytes of it */
    hello said;
} guest;

enum { GUESTS = 64 };

typedef struct {
    const sz_launch *launch;
    const sz_transport_core *core;
    double seconds, end;
    int listener;
    int *sockets;  /* [size]; -1: none */
    place *places; /* [size] */
    hello own;
    guest guests[GUESTS];
    int guest_count;
} join;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

__attribute__((format(printf, 2, 3))) static int fail(const join *j, const char *format, ...)
{
    char text[512];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    return j->core->fail(text);
}

/* ---- sockets ---- */
static int open_socket(int family)
{
    return socket(family, SOCK_STREAM | SOCK_CLOEXEC, IPPROTO_TCP);
}

enum { LOOK = 200 }; /* milliseconds between looks at the clock */

/* Waits until the socket is ready. 1; 0 at the time `end`; -1 with a message after an interrupt. */
static int wait_ready(const join *j, int fd, short events, double end)
{
    for (;;) {
        struct pollfd p = { .fd = fd, .events = events };
        if (poll(&p, 1, LOOK) > 0) return 1;
        if (j->core->interrupted()) return j->core->fail("interrupted");
        if (now() > end) return 0;
    }
}

/* Sends or receives all bytes. 1; 0: not before `end`, or the connection is lost; -1 as above. */
static int transfer(const join *j, int fd, void *data, size_t bytes, bool send_them, double end)
{
    for (size_t done = 0; done < bytes;) {
        const int ready = wait_ready(j, fd, send_them ? POLLOUT : POLLIN, end);
        if (ready <= 0) return ready;
        char *p = (char *)data + done;
        const size_t left = bytes - done;
        ssize_t n;
        if (send_them) n = send(fd, p, left, MSG_NOSIGNAL | MSG_DONTWAIT);
        else n = recv(fd, p, left, MSG_DONTWAIT);
        if (n > 0) done += (size_t)n;
        else if (n == 0 || (errno != EAGAIN && errno != EINTR)) return 0;
    }
    return 1;
}

/* The program's limit of open files may be lower than the number of ranks. */
static void allow_sockets(int count)
{
    enum { OTHERS = 256 };
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
    const rlim_t wanted = (rlim_t)count + OTHERS;
    if (limit.rlim_cur >= wanted) return;
    limit.rlim_cur = wanted < limit.rlim_max ? wanted : limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static int set_port(struct sockaddr_storage *a, int port)
{
    if (a->ss_family == AF_INET6) ((struct sockaddr_in6 *)a)->sin6_port = htons((uint16_t)port);
    else ((struct sockaddr_in *)a)->sin_port = htons((uint16_t)port);
    return port;
}

static int port_of(const struct sockaddr_storage *a)
{
    if (a->ss_family == AF_INET6) return ntohs(((const struct sockaddr_in6 *)a)->sin6_port);
    return ntohs(((const struct sockaddr_in *)a)->sin_port);
}

static bool is_loopback(const struct sockaddr_storage *a)
{
    enum { LOOPBACK_NET = 127, NET_SHIFT = 24 };
    if (a->ss_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
    const uint32_t address = ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr);
    return address >> NET_SHIFT == LOOPBACK_NET;
}

/* ---- listening ---- */
/* A listening socket at the address, or at all of this machine's if there is none. -1: errno. */
static int listen_at(const struct sockaddr *address, socklen_t length)
{
    enum { QUEUE = 1024 };
    const int yes = 1;
    const int fd = open_socket(address->sa_family);
    if (fd < 0) return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(fd, address, length) == 0 && listen(fd, QUEUE) == 0) return fd;
    const int why = errno;
    close(fd);
    errno = why;
    return -1;
}

static int listen_anywhere(int family, int port)
{
    struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };
    struct sockaddr_in four = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
    if (family == AF_INET6) return listen_at((struct sockaddr *)&six, sizeof six);
    return listen_at((struct sockaddr *)&four, sizeof four);
}

/* The launcher's address; free it with freeaddrinfo. NULL with the reason in *why. */
static struct addrinfo *resolve(const join *j, const char **why)
{
    const struct addrinfo hints = { .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV };
    struct addrinfo *list = NULL;
    char port[16];
    snprintf(port, sizeof port, "%d", j->launch->port);
    const int code = getaddrinfo(j->launch->address, port, &hints, &list);
    *why = code ? gai_strerror(code) : "";
    return code ? NULL : list;
}

/* Whether the launcher names a machine by a name that leads to itself only on that machine: in
 * Debian's /etc/hosts a machine's own name is 127.0.1.1. */
static bool is_own_name(const join *j, const struct addrinfo *list)
{
    const char *name = j->launch->address;
    const bool is_number = strspn(name, "0123456789.") == strlen(name) || strchr(name, ':');
    if (j->launch->local_size == j->own.size) return false; /* nobody is outside */
    if (is_number || strcmp(name, "localhost") == 0) return false;
    return is_loopback((const struct sockaddr_storage *)list->ai_addr);
}

/* Rank 0's. An address that is not one of this machine's is a name for it outside. */
static int listen_as_first(join *j)
{
    const char *why;
    struct addrinfo *list = resolve(j, &why);
    if (!list) return fail(j, "MASTER_ADDR=%s: %s", j->launch->address, why);
    const bool anywhere = is_own_name(j, list);
    for (const struct addrinfo *a = list; a && j->listener < 0 && !anywhere; a = a->ai_next)
        j->listener = listen_at(a->ai_addr, a->ai_addrlen);
    if (j->listener < 0 && (anywhere || errno == EADDRNOTAVAIL))
        j->listener = listen_anywhere(list->ai_family, j->launch->port);
    const int code = errno;
    freeaddrinfo(list);
    if (j->listener >= 0) return 0;
    return fail(j, "rank 0 cannot listen at port %d: %s; MASTER_PORT=N names another one",
                j->launch->port, strerror(code));
}

/* ---- connecting ---- */
/* A connection to a port of this machine where nobody listens can become one with itself, if the
 * kernel takes that port for its own end. */
static bool is_itself(int fd)
{
    struct sockaddr_storage own = { 0 };
    struct sockaddr_storage other = { 0 };
    socklen_t n = sizeof own;
    socklen_t m = sizeof other;
    if (getsockname(fd, (struct sockaddr *)&own, &n) != 0) return false;
    if (getpeername(fd, (struct sockaddr *)&other, &m) != 0) return false;
    return n == m && memcmp(&own, &other, n) == 0;
}

/* A connection that is tried once. -1: errno. */
static int connect_once(const join *j, const struct sockaddr *address, socklen_t length)
{
    enum { TRY = 5 }; /* seconds */
    const int fd = open_socket(address->sa_family);
    if (fd < 0) return -1;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    int code = connect(fd, address, length) == 0 ? 0 : errno;
    if (code == EINPROGRESS) {
        socklen_t n = sizeof code;
        const int ready = wait_ready(j, fd, POLLOUT, now() + TRY);
        if (ready == 1) getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &n);
        else code = ready == 0 ? ETIMEDOUT : EINTR;
    }
    if (code == 0 && is_itself(fd)) {
        /* It must not keep the port from rank 0 for a minute after its end. */
        const struct linger none = { .l_onoff = 1, .l_linger = 0 };
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &none, sizeof none);
        code = ECONNREFUSED;
    }
    if (code == 0) return fd;
    close(fd);
    errno = code;
    return -1;
}

static void pause_between_tries(void)
{
    const struct timespec t = { 0, 100 * 1000 * 1000 };
    nanosleep(&t, NULL);
}

/* Rank 0 may start later than this one, so tries until the time is up. */
static int connect_to_first(join *j)
{
    char reason[128] = "";
    while (now() < j->end) {
        const char *why;
        struct addrinfo *list = resolve(j, &why);
        snprintf(reason, sizeof reason, "%s", why);
        int fd = -1;
        for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next) {
            fd = connect_once(j, a->ai_addr, a->ai_addrlen);
            if (fd < 0) snprintf(reason, sizeof reason, "%s", strerror(errno));
        }
        if (list) freeaddrinfo(list);
        if (fd >= 0) {
            j->sockets[0] = fd;
            return 0;
        }
        if (j->core->interrupted()) return j->core->fail("interrupted");
        pause_between_tries();
    }
    return fail(j, "rank %d does not reach rank 0 at %s port %d within %g s: %s", j->own.rank,
                j->launch->address, j->launch->port, j->seconds, reason);
}

/* ---- hellos ---- */
static int lost(const join *j, int rank)
{
    return fail(j, "rank %d is gone before the job began", rank);
}

static int send_hello(join *j, int fd)
{
    return transfer(j, fd, &j->own, sizeof j->own, true, now() + GREETING);
}

/* Where others reach a rank whose hello came over this connection. */
static int note_place(join *j, int fd, const hello *h)
{
    place *p = &j->places[h->rank];
    socklen_t length = sizeof p->address;
    if (getpeername(fd, (struct sockaddr *)&p->address, &length) != 0) return lost(j, h->rank);
    set_port(&p->address, h->port);
    p->length = length;
    memcpy(p->host, h->host, sizeof p->host);
    return 0;
}

/* What does not fit in the hello of one of ours is a mistake in the launch: -1 with a message. */
static int check_hello(const join *j, const hello *h)
{
    if (h->version != j->own.version || strcmp(h->release, j->own.release) != 0)
        return fail(j,
                    "rank %d on %s runs segzero %s, and rank %d runs %s: all need the same build",
                    h->rank, h->host, h->release, j->own.rank, j->own.release);
    if (h->size != j->own.size || h->rank <= 0 || h->rank >= h->size)
        return fail(j, "rank %d on %s was started as one of %d, and this job has %d ranks", h->rank,
                    h->host, h->size, j->own.size);
    return 0;
}

/* A whole hello came over this connection. It becomes that of its rank, or is closed. */
static int welcome(join *j, int fd, hello *h)
{
    h->host[SZ_HOST_NAME - 1] = 0;
    h->release[sizeof h->release - 1] = 0;
    int status = check_hello(j, h);
    if (status == 0 && (h->rank <= j->own.rank || j->sockets[h->rank] >= 0))
        status = fail(j, "two processes say that they are rank %d; the second is on %s", h->rank,
                      h->host);
    if (status == 0 && j->own.rank == 0) status = note_place(j, fd, h);
    if (status == 0) j->sockets[h->rank] = fd;
    else close(fd);
    return status;
}

static void accept_guest(join *j)
{
    const int fd = accept4(j->listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd >= 0) j->guests[j->guest_count++] = (guest){ .fd = fd, .end = now() + GREETING };
    else if (errno != EAGAIN && errno != EINTR) pause_between_tries();
}

/* Reads what a guest has said. 1: all of it; 0: not yet; -1: it is a stranger. */
static int hear(guest *g)
{
    char *p = (char *)&g->said + g->got;
    const ssize_t n = recv(g->fd, p, sizeof g->said - g->got, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return now() > g->end ? -1 : 0;
    if (n <= 0) return -1;
    g->got += (size_t)n;
    if (g->got >= sizeof g->said.magic && g->said.magic != HELLO) return -1;
    return g->got == sizeof g->said;
}

/* Waits a little for connections and hellos. -1 with a message. */
static int look_at_guests(join *j)
{
    struct pollfd polled[GUESTS + 1];
    const int listener = j->guest_count < GUESTS ? j->listener : -1;
    const int count = j->guest_count;
    for (int i = 0; i < count; i++)
        polled[i] = (struct pollfd){ .fd = j->guests[i].fd, .events = POLLIN };
    polled[count] = (struct pollfd){ .fd = listener, .events = POLLIN };
    const int ready = poll(polled, (nfds_t)count + 1, LOOK);
    if (j->core->interrupted()) return j->core->fail("interrupted");

    /* The last guest takes the place of one that leaves. */
    for (int i = count - 1; i >= 0; i--) {
        guest g;
        const int heard = hear(&j->guests[i]);
        if (heard == 0) continue;
        g = j->guests[i];
        j->guests[i] = j->guests[--j->guest_count];
        if (heard < 0) close(g.fd);
        else if (welcome(j, g.fd, &g.said) != 0) return -1;
    }
    if (ready > 0 && polled[count].revents) accept_guest(j);
    return 0;
}

/* Waits for the connections of the ranks from `first` on. */
static int accept_from(join *j, int first)
{
    for (;;) {
        int missing = -1;
        for (int r = first; r < j->own.size && missing < 0; r++)
            if (j->sockets[r] < 0) missing = r;
        if (missing < 0) return 0;
        if (now() > j->end)
            return fail(j, "rank %d has not come within %g s (SEGZERO_JOIN_SECONDS=N waits longer)",
                        missing, j->seconds);
        if (look_at_guests(j) < 0) return -1;
    }
}

/* ---- the list of all ranks ---- */
static int send_places(join *j)
{
    const size_t bytes = sizeof *j->places * (size_t)j->own.size;
    for (int r = 1; r < j->own.size; r++) {
        int sent = transfer(j, j->sockets[r], &j->own, sizeof j->own, true, j->end);
        if (sent == 1) sent = transfer(j, j->sockets[r], j->places, bytes, true, j->end);
        if (sent <= 0) return sent < 0 ? -1 : lost(j, r);
    }
    return 0;
}

static int receive_places(join *j)
{
    const size_t bytes = sizeof *j->places * (size_t)j->own.size;
    hello first_rank = { 0 };
    int came = transfer(j, j->sockets[0], &first_rank, sizeof first_rank, false, j->end);
    if (came == 1 && (first_rank.magic != HELLO || first_rank.rank != 0))
        return fail(j,
                    "rank %d: what answers at %s port %d is not rank 0 of segzero; "
                    "MASTER_PORT=N names another port",
                    j->own.rank, j->launch->address, j->launch->port);
    if (came == 1) came = transfer(j, j->sockets[0], j->places, bytes, false, j->end);
    if (came < 0) return -1;
    if (came == 0)
        return fail(j, "rank %d: rank 0 has ended before the job began, or not all ranks came",
                    j->own.rank);

    /* Ranks on rank 0's machine reach it by an address that is valid there only. */
    struct sockaddr_storage first;
    socklen_t length = sizeof first;
    if (getpeername(j->sockets[0], (struct sockaddr *)&first, &length) != 0) return lost(j, 0);
    for (int r = 1; r < j->own.size; r++) {
        place *p = &j->places[r];
        if (!is_loopback(&p->address)) continue;
        const int port = port_of(&p->address);
        p->address = first;
        p->length = length;
        set_port(&p->address, port);
    }
    return 0;
}

static int connect_below(join *j)
{
    for (int r = 1; r < j->own.rank; r++) {
        const place *p = &j->places[r];
        int fd;
        while ((fd = connect_once(j, (const struct sockaddr *)&p->address, p->length)) < 0) {
            const int code = errno;
            if (j->core->interrupted()) return j->core->fail("interrupted");
            if (now() > j->end)
                return fail(j, "rank %d does not reach rank %d (host %s): %s", j->own.rank, r,
                            p->host, strerror(code));
            pause_between_tries();
        }
        j->sockets[r] = fd;
        if (send_hello(j, fd) != 1) return lost(j, r);
    }
    return 0;
}

/* ---- all of it ---- */
/* No waiting to fill a packet; a machine that cannot be reached any more is noticed. */
static void set_options(int fd)
{
    const int yes = 1;
    const int idle = 10; /* seconds of silence before the first question */
    const int every = 5; /* and between questions */
    const int times = 4;
    const unsigned unanswered = 30 * 1000; /* milliseconds that sent bytes may stay so */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &yes, sizeof yes);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &every, sizeof every);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof times);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &unanswered, sizeof unanswered);
    fcntl(fd, F_SETFL, O_NONBLOCK);
}

static int join_as_first(join *j)
{
    memcpy(j->places[0].host, j->own.host, SZ_HOST_NAME);
    if (listen_as_first(j) != 0 || accept_from(j, 1) != 0) return -1;
    return send_places(j);
}

static int join_as_other(join *j)
{
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    if (connect_to_first(j) != 0) return -1;
    if (getsockname(j->sockets[0], (struct sockaddr *)&own, &length) != 0) return lost(j, 0);
    j->listener = listen_anywhere(own.ss_family, 0);
    length = sizeof own;
    if (j->listener < 0 || getsockname(j->listener, (struct sockaddr *)&own, &length) != 0)
        return fail(j, "rank %d cannot listen: %s", j->own.rank, strerror(errno));
    j->own.port = port_of(&own);
    if (send_hello(j, j->sockets[0]) != 1) return lost(j, 0);
    if (receive_places(j) != 0 || connect_below(j) != 0) return -1;
    return accept_from(j, j->own.rank + 1);
}

int sz_tcp_join(const sz_launch *l, const sz_transport_core *core, int *sockets,
                char (*hosts)[SZ_HOST_NAME])
{
    const char *seconds = getenv("SEGZERO_JOIN_SECONDS");
    join j = { .launch = l, .core = core, .sockets = sockets, .listener = -1 };
    j.own = (hello){
        .magic = HELLO, .version = SZ_TRANSPORT_VERSION, .rank = l->rank, .size = l->size
    };
    j.seconds = seconds && atof(seconds) > 0 ? atof(seconds) : PATIENCE;
    j.end = now() + j.seconds;
    gethostname(j.own.host, sizeof j.own.host - 1);
    snprintf(j.own.release, sizeof j.own.release, "%s", sz_version());
    for (int r = 0; r < l->size; r++) sockets[r] = -1;
    j.places = calloc((size_t)l->size, sizeof *j.places);
    if (!j.places) return core->fail("no memory for the list of ranks");
    allow_sockets(l->size);

    const int status = l->rank == 0 ? join_as_first(&j) : join_as_other(&j);
    if (j.listener >= 0) close(j.listener);
    for (int i = 0; i < j.guest_count; i++) close(j.guests[i].fd);
    for (int r = 0; r < l->size; r++) {
        memcpy(hosts[r], j.places[r].host, SZ_HOST_NAME);
        if (sockets[r] < 0) continue;
        if (status == 0) set_options(sockets[r]);
        else close(sockets[r]);
    }
    free(j.places);
    return status;
}
