/* tcp.c - the transport over TCP: one socket between any two ranks.
 *
 * Each message is a frame (16 bytes) and its data. The frame repeats the number of bytes, so ranks
 * that do not agree on what comes next notice it. The other frames have no data: ABORT ends the
 * receiver, without a word, because the sender has printed why; BYE is sent at the end of the
 * program; QUESTION asks whether the receiver waits, and ANSWER says that it does.
 *
 * A process that ends closes its sockets, so the others know at once, on any machine. A machine
 * that cannot be reached is noticed after 30 seconds (set_options in tcp_join.c), or by the time
 * limit of the exchange if that is shorter. Several ranks see the same loss: each waits for a
 * moment that is longer for higher ranks, so that one of them prints it and its ABORT ends the
 * others. An ABORT may come in the middle of a message, so the last bytes before the end of a
 * stream count.
 * Leaves out: shared memory between the ranks of a machine.
 */
#define _GNU_SOURCE
#include "comm/tcp.h"
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static const uint64_t DATA = 0x0064617461007a73; /* "sz data" */
static const uint64_t ABORT = 0x0061626f72747a73;
static const uint64_t QUESTION = 0x657571207a730000;
static const uint64_t ANSWER = 0x00776e61207a7300;
static const uint64_t BYE = 0x000000627965737a;

typedef struct {
    uint64_t kind;
    uint64_t value; /* bytes that follow, or the exit status */
} frame;

enum { NONE = -1 };

/* The connection to one rank. */
typedef struct {
    int fd;                    /* -1: this rank itself, or closed */
    bool said_bye;             /* it has come to its end */
    int send_first, send_last; /* messages to send, a list in `next` */
    int receive_first, receive_last;
    size_t sent, received; /* of the first one, its frame included */
    frame out, in;
    bool is_asking;                    /* it has asked, and has no answer yet */
    bool has_answered;                 /* since absent() asked */
    unsigned char tail[sizeof(frame)]; /* the last bytes that were received */
} peer;

static const sz_transport_core *core;
static sz_transport self;
static char (*hosts)[SZ_HOST_NAME];
static peer *peers; /* [size] */
static struct pollfd *polled;
static const sz_message *messages; /* of this exchange */
static int *next;                  /* [room] the next message in the list of a peer */
static int room;
static double patience = 60; /* seconds that the end of the program waits for the other ranks */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- lists of messages ---- */
static void append(int *first, int *last, int i)
{
    next[i] = NONE;
    if (*first == NONE) *first = i;
    else next[*last] = i;
    *last = i;
}

static int queue(const sz_message *list, int count)
{
    if (count > room) {
        int *more = realloc(next, sizeof *more * (size_t)count);
        if (!more) return core->fail("no memory for messages between ranks");
        next = more;
        room = count;
    }
    messages = list;
    for (int r = 0; r < self.size; r++) {
        peers[r].send_first = NONE;
        peers[r].receive_first = NONE;
    }
    for (int i = 0; i < count; i++) {
        peer *p = &peers[list[i].peer];
        if (list[i].send) append(&p->send_first, &p->send_last, i);
        else append(&p->receive_first, &p->receive_last, i);
    }
    return 0;
}

/* ---- ABORT ---- */
/* Ends the process. The host program takes a call of _exit() for a mistake of the user's. */
__attribute__((noreturn)) static void leave(int status)
{
    for (;;) syscall(SYS_exit_group, status);
}

/* A frame without data to every rank. Waits for room, but not for long. */
static void tell_all(uint64_t kind, uint64_t value)
{
    const double end = now() + 0.3; /* seconds */
    const frame f = { kind, value };
    for (int r = 0; r < self.size; r++) {
        if (peers[r].fd < 0) continue;
        const double left = end - now();
        struct pollfd p = { .fd = peers[r].fd, .events = POLLOUT };
        if (poll(&p, 1, left > 0 ? (int)(left * 1e3) : 0) <= 0) continue;
        /* Where there is room, it is for more than 16 bytes. */
        if (send(peers[r].fd, &f, sizeof f, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) continue;
    }
}

static void abort_all(int status)
{
    tell_all(ABORT, (uint64_t)status);
    for (int r = 0; r < self.size; r++)
        if (peers[r].fd >= 0) shutdown(peers[r].fd, SHUT_WR);
    leave(status > 0 ? status : 1);
}

/* Another rank has printed why the job ends. The others must not take the end of this one for the
 * reason, so they hear it from here too. */
static void end_quietly(uint64_t status) { abort_all(status < 256 ? (int)status : 1); }

/* ---- the end of a stream ---- */
static void note_tail(peer *p, const char *data, size_t n)
{
    const size_t room_of = sizeof p->tail;
    if (n >= room_of) {
        memcpy(p->tail, data + n - room_of, room_of);
        return;
    }
    memmove(p->tail, p->tail + n, room_of - n);
    memcpy(p->tail + room_of - n, data, n);
}

/* What the last bytes of a stream that has ended say. Returns whether the rank said bye. */
static bool read_tail(peer *p)
{
    frame last;
    memcpy(&last, p->tail, sizeof last);
    if (last.kind == ABORT) end_quietly(last.value);
    if (last.kind == BYE) p->said_bye = true;
    return p->said_bye;
}

/* Reads what is left of a stream. Returns true when it has ended. */
static bool drain(peer *p)
{
    char bytes[65536];
    for (;;) {
        const ssize_t n = recv(p->fd, bytes, sizeof bytes, MSG_DONTWAIT);
        if (n > 0) {
            note_tail(p, bytes, (size_t)n);
            continue;
        }
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return false;
        read_tail(p);
        return true;
    }
}

/* ---- progress ---- */
/* Sends as much as goes. 1: something went; 0: nothing; -1: the rank is gone. */
static int send_some(peer *p)
{
    int moved = 0;
    while (p->send_first != NONE) {
        const sz_message *m = &messages[p->send_first];
        if (p->sent == 0) p->out = (frame){ DATA, m->bytes };
        struct iovec parts[2];
        int count = 0;
        size_t at = p->sent;
        if (at < sizeof p->out)
            parts[count++] = (struct iovec){ (char *)&p->out + at, sizeof p->out - at };
        at = at < sizeof p->out ? 0 : at - sizeof p->out;
        parts[count++] = (struct iovec){ (char *)m->data + at, m->bytes - at };
        const struct msghdr header = { .msg_iov = parts, .msg_iovlen = (size_t)count };
        const ssize_t n = sendmsg(p->fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0) return errno == EAGAIN || errno == EINTR ? moved : -1;
        moved = 1;
        p->sent += (size_t)n;
        if (p->sent < sizeof p->out + m->bytes) continue;
        p->sent = 0;
        p->send_first = next[p->send_first];
    }
    return moved;
}

/* Sends a frame without data between two messages, if there is room for all of it. */
static bool send_frame(peer *p, uint64_t kind)
{
    const frame f = { kind, 0 };
    struct pollfd room_for = { .fd = p->fd, .events = POLLOUT };
    if (p->fd < 0 || p->sent > 0) return false;
    if (poll(&room_for, 1, 0) != 1 || !(room_for.revents & POLLOUT)) return false;
    return send(p->fd, &f, sizeof f, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)sizeof f;
}

/* Whether this frame is one of those that may come before any message; then it is dealt with. */
static bool is_between(peer *p, const frame *f)
{
    if (f->kind == ANSWER) p->has_answered = true;
    if (f->kind == QUESTION) p->is_asking = true;
    return f->kind == ANSWER || f->kind == QUESTION;
}

static void answer_questions(void)
{
    for (int r = 0; r < self.size; r++)
        if (peers[r].is_asking && send_frame(&peers[r], ANSWER)) peers[r].is_asking = false;
}

/* Takes the questions and answers that are next in a stream. Returns false when it has ended. */
static bool listen_to(peer *p)
{
    frame f;
    while (p->received == 0) {
        const ssize_t n = recv(p->fd, &f, sizeof f, MSG_PEEK | MSG_DONTWAIT);
        if (n < 0) return errno == EAGAIN || errno == EINTR;
        if (n == 0) return false;
        if (n < (ssize_t)sizeof f) return true;
        if (f.kind == ABORT) end_quietly(f.value);
        if (!is_between(p, &f)) return true;
        if (recv(p->fd, &f, sizeof f, MSG_DONTWAIT) != (ssize_t)sizeof f) return false;
    }
    return true;
}

/* Listens to all ranks. One that has ended without a bye, or NONE. */
static int listen_to_all(void)
{
    for (int r = 0; r < self.size; r++) {
        peer *p = &peers[r];
        if (p->fd < 0 || p->said_bye || listen_to(p)) continue;
        if (!read_tail(p)) return r;
    }
    answer_questions();
    return NONE;
}

/* A whole frame has come. 0; -1 with a message; -2: the rank has ended. */
static int check_frame(peer *p, const sz_message *m)
{
    char text[160];
    if (is_between(p, &p->in)) {
        p->received = 0;
        return 0;
    }
    if (p->in.kind == ABORT) end_quietly(p->in.value);
    if (p->in.kind == BYE) {
        p->said_bye = true;
        return -2;
    }
    if (p->in.kind == DATA && p->in.value == m->bytes) return 0;
    const int r = (int)(p - peers);
    snprintf(text, sizeof text,
             "rank %d (host %s) sent %llu bytes where %zu were expected: the ranks do not do the "
             "same",
             r, hosts[r], (unsigned long long)p->in.value, m->bytes);
    return core->fail(text);
}

/* Receives what has come. 1: something came; 0: nothing; -1, -2 as above, -2 when it is gone. */
static int receive_some(peer *p)
{
    int moved = 0;
    while (p->receive_first != NONE) {
        const sz_message *m = &messages[p->receive_first];
        char *place = (char *)&p->in + p->received;
        size_t left = sizeof p->in - p->received;
        if (p->received >= sizeof p->in) {
            const size_t got = p->received - sizeof p->in;
            place = (char *)m->data + got;
            left = m->bytes - got;
        }
        const ssize_t n = recv(p->fd, place, left, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return moved;
        if (n <= 0) {
            read_tail(p);
            return -2;
        }
        moved = 1;
        note_tail(p, place, (size_t)n);
        p->received += (size_t)n;
        if (p->received == sizeof p->in) {
            const int status = check_frame(p, m);
            if (status != 0) return status;
            if (p->received == 0) continue;
        }
        if (p->received < sizeof p->in + m->bytes) continue;
        p->received = 0;
        p->receive_first = next[p->receive_first];
    }
    return moved;
}

static bool is_done(const peer *p) { return p->send_first == NONE && p->receive_first == NONE; }

/* All peers. 1: something moved; 0: nothing; -1 with a message; -2: *late is gone. */
static int move_all(int *late, bool *done)
{
    int moved = 0;
    *done = true;
    for (int r = 0; r < self.size; r++) {
        peer *p = &peers[r];
        if (is_done(p)) continue;
        int status = p->fd < 0 ? -2 : receive_some(p);
        if (status >= 0) {
            moved |= status;
            const int sent = send_some(p);
            /* What the rank sent before it ended may say why. */
            if (sent < 0) status = drain(p) ? -2 : 0;
            else moved |= sent;
        }
        if (status == -2) *late = r;
        if (status < 0) return status;
        if (!is_done(p)) *done = false;
    }
    return moved;
}

/* Waits for the sockets, for `milliseconds`. -2: a rank that need not answer now is gone. */
static int wait_for_any(int milliseconds, int *late)
{
    for (int r = 0; r < self.size; r++) {
        const peer *p = &peers[r];
        polled[r] = (struct pollfd){ .fd = p->said_bye ? -1 : p->fd, .events = POLLRDHUP };
        if (p->receive_first != NONE) polled[r].events |= POLLIN;
        if (p->send_first != NONE) polled[r].events |= POLLOUT;
    }
    if (poll(polled, (nfds_t)self.size, milliseconds) <= 0) return 0;
    for (int r = 0; r < self.size; r++) {
        const short gone = POLLRDHUP | POLLHUP | POLLERR;
        if (!(polled[r].revents & gone) || peers[r].receive_first != NONE) continue;
        if (!drain(&peers[r]) || peers[r].said_bye) continue;
        *late = r;
        return -2;
    }
    return 0;
}

/* Something is wrong: a moment for the ABORT of a lower rank, which saw it too. Its frame may be
 * behind data that nobody waits for. */
static void wait_for_abort(void)
{
    const double each = 0.1; /* seconds */
    const double most = 2;
    const double wanted = each * (0.5 + self.rank);
    const double end = now() + (wanted < most ? wanted : most);
    while (now() < end) {
        const struct timespec t = { 0, 10 * 1000 * 1000 };
        for (int r = 0; r < self.size; r++) {
            frame last;
            if (peers[r].fd < 0) continue;
            drain(&peers[r]);
            memcpy(&last, peers[r].tail, sizeof last);
            if (last.kind == ABORT) end_quietly(last.value);
        }
        nanosleep(&t, NULL);
    }
}

static int first_unfinished(void)
{
    for (int r = 0; r < self.size; r++)
        if (!is_done(&peers[r])) return r;
    return NONE;
}

static int exchange(const sz_message *list, int count, double seconds, int *late)
{
    enum { SPIN = 100, LOOK = 100 }; /* turns without a wait; milliseconds of one */
    *late = NONE;
    patience = seconds;
    if (queue(list, count) != 0) return -1;
    const double end = now() + seconds;
    int idle = 0;
    for (;;) {
        bool done;
        int status = move_all(late, &done);
        if (status >= 0 && done) return 0;
        if (status == 0 && ++idle > SPIN) {
            listen_to_all();
            status = wait_for_any(LOOK, late);
        } else if (status == 0) sched_yield();
        else idle = 0;
        if (status < 0) {
            wait_for_abort();
            return status;
        }
        if (core->interrupted()) return core->fail("interrupted");
        if (now() > end) {
            *late = first_unfinished();
            wait_for_abort();
            return core->fail("a rank does not answer");
        }
    }
}

/* ---- waiting ---- */
static int attend(void)
{
    const int gone = listen_to_all();
    if (gone != NONE) wait_for_abort();
    return gone;
}

static int absent(const int *ranks, int count, double seconds)
{
    for (int r = 0; r < self.size; r++) {
        peers[r].has_answered = r == self.rank;
        if (r != self.rank) send_frame(&peers[r], QUESTION);
    }
    const double end = now() + seconds;
    int first = NONE;
    do {
        const struct timespec t = { 0, 10 * 1000 * 1000 };
        listen_to_all();
        first = NONE;
        for (int i = count - 1; i >= 0; i--)
            if (!peers[ranks[i]].has_answered) first = ranks[i];
        if (first != NONE) nanosleep(&t, NULL);
    } while (first != NONE && now() < end);
    if (first != NONE) wait_for_abort();
    return first;
}

/* ---- the end ---- */
/* The end of the program: waits until all ranks have come to theirs, so that what was sent to them
 * arrives, and a rank that still waits for this one says so. */
static void finish(void)
{
    enum { LOOK = 50 };
    tell_all(BYE, 0);
    const double end = now() + patience;
    for (;;) {
        int waiting = 0;
        for (int r = 0; r < self.size; r++) {
            peer *p = &peers[r];
            if (p->fd < 0 || p->said_bye) continue;
            const bool ended = drain(p);
            frame last;
            memcpy(&last, p->tail, sizeof last);
            if (last.kind == ABORT) end_quietly(last.value);
            if (last.kind == BYE || ended) p->said_bye = true;
            else waiting++;
        }
        if (!waiting || now() > end || core->interrupted()) return;
        for (int r = 0; r < self.size; r++)
            polled[r] = (struct pollfd){ .fd = peers[r].said_bye ? -1 : peers[r].fd,
                                         .events = POLLIN };
        poll(polled, (nfds_t)self.size, LOOK);
    }
}

const sz_transport *sz_tcp_open(const sz_launch *l, const sz_transport_core *given)
{
    core = given;
    const size_t size = (size_t)l->size;
    int *sockets = calloc(size, sizeof *sockets);
    hosts = calloc(size, sizeof *hosts);
    peers = calloc(size, sizeof *peers);
    polled = calloc(size, sizeof *polled);
    if (!sockets || !hosts || !peers || !polled) {
        core->fail("no memory for the connections between ranks");
        return NULL;
    }
    self = (sz_transport){ .version = SZ_TRANSPORT_VERSION,
                           .rank = l->rank,
                           .size = l->size,
                           .hosts = hosts,
                           .exchange = exchange,
                           .attend = attend,
                           .absent = absent,
                           .abort = abort_all };
    if (sz_tcp_join(l, core, sockets, hosts) != 0) return NULL;
    for (int r = 0; r < l->size; r++) peers[r].fd = sockets[r];
    free(sockets);
    atexit(finish);
    return &self;
}
