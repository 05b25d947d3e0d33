/* mpi.c - the transport over MPI, a library of its own: libsegzero_mpi.so.
 *
 * Messages are MPI_Isend and MPI_Irecv with one tag; a long one is several of MPI's. Two more tags
 * are for ranks that ask whether others wait. The wait polls for all messages, so that it can end
 * by time, or when a process on this machine is gone: mpirun kills the others soon, and prints
 * nothing that names it. Nothing else of MPI is used but starting and ending.
 * Source: the MPI 3.1 standard, chapters 3 and 8.
 */
#define _GNU_SOURCE
#include "comm/transport.h"
#include <errno.h>
#include <mpi.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TAG = 1, QUESTION = 2, ANSWER = 3 };    /* the tags of messages */
static const size_t LONGEST = (size_t)1 << 30; /* bytes of one MPI message; their count is an int */

static const sz_transport_core *core;
static sz_transport self;
static char (*hosts)[SZ_HOST_NAME];

static int *pids; /* [size] process of each rank on this machine; 0: on another one */

static MPI_Request *requests;
static MPI_Status *statuses;
static int *peers; /* of each request */
static int *sizes; /* bytes of each request */
static int room;
static double patience = 60; /* seconds that the end of the program waits for the other ranks */

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int fail_mpi(const char *what, int code)
{
    char reason[MPI_MAX_ERROR_STRING] = "";
    char text[MPI_MAX_ERROR_STRING + 64];
    int length = 0;
    MPI_Error_string(code, reason, &length);
    snprintf(text, sizeof text, "%s: %s", what, reason);
    return core->fail(text);
}

/* ---- an exchange ---- */
static int reserve(int count)
{
    if (count <= room) return 0;
    MPI_Request *r = realloc(requests, sizeof *r * (size_t)count);
    if (r) requests = r;
    MPI_Status *s = realloc(statuses, sizeof *s * (size_t)count);
    if (s) statuses = s;
    int *p = realloc(peers, sizeof *p * (size_t)count);
    if (p) peers = p;
    int *n = realloc(sizes, sizeof *n * (size_t)count);
    if (n) sizes = n;
    if (!r || !s || !p || !n) return core->fail("no memory for messages between ranks");
    room = count;
    return 0;
}

/* How many MPI messages one of ours is. */
static int pieces(size_t bytes) { return (int)((bytes + LONGEST - 1) / LONGEST); }

/* Starts all messages: those to receive first, so that none arrives unexpected. Returns the number
 * of requests so far, or -1 with a message; what was started then stays, for the end of the
 * program. */
static int start(const sz_message *messages, int count, bool send, int used)
{
    for (int i = 0; i < count; i++) {
        const sz_message *m = &messages[i];
        if (m->send != send) continue;
        for (size_t at = 0; at < m->bytes; at += LONGEST) {
            const size_t left = m->bytes - at;
            const int n = (int)(left < LONGEST ? left : LONGEST);
            char *p = (char *)m->data + at;
            int code;
            if (send)
                code = MPI_Isend(p, n, MPI_BYTE, m->peer, TAG, MPI_COMM_WORLD, &requests[used]);
            else code = MPI_Irecv(p, n, MPI_BYTE, m->peer, TAG, MPI_COMM_WORLD, &requests[used]);
            if (code != MPI_SUCCESS)
                return fail_mpi(send ? "a message to a rank" : "a message", code);
            sizes[used] = n;
            peers[used++] = m->peer;
        }
    }
    return used;
}

/* ---- sizes ---- */
static int fail_size(int request, const char *sent)
{
    const int r = peers[request];
    char text[SZ_HOST_NAME + 160];
    snprintf(text, sizeof text,
             "rank %d (host %s) sent %s bytes where %d were expected: the ranks do not do the same",
             r, hosts[r], sent, sizes[request]);
    return core->fail(text);
}

/* All requests are done, the first `received` of them are messages to this rank. For MPI a message
 * that is shorter than its room is no error. */
static int check_sizes(int received)
{
    for (int i = 0; i < received; i++) {
        int n = 0;
        char sent[32];
        MPI_Get_count(&statuses[i], MPI_BYTE, &n);
        if (n == sizes[i]) continue;
        snprintf(sent, sizeof sent, "%d", n);
        return fail_size(i, sent);
    }
    return 0;
}

/* What code says; a message that is longer than its room is named. */
static int fail_exchange(int received, int code)
{
    for (int i = 0; code == MPI_ERR_IN_STATUS && i < received; i++)
        if (statuses[i].MPI_ERROR == MPI_ERR_TRUNCATE) return fail_size(i, "more");
    return fail_mpi("messages between ranks", code);
}

/* Gives the processor to others more and more often, so that ranks can share one. */
static void pause_a_little(int turn)
{
    enum { SPIN = 200, YIELD = 100000 };
    if (turn < SPIN) return;
    if (turn < YIELD) {
        sched_yield();
        return;
    }
    const struct timespec t = { 0, 50 * 1000 };
    nanosleep(&t, NULL);
}

static int first_unfinished(int count)
{
    for (int i = 0; i < count; i++) {
        int done = 0;
        if (requests[i] == MPI_REQUEST_NULL) continue;
        if (MPI_Test(&requests[i], &done, MPI_STATUS_IGNORE) == MPI_SUCCESS && !done)
            return peers[i];
    }
    return -1;
}

/* Whether a process of this number can be seen from here. */
static bool is_here(int pid) { return kill(pid, 0) == 0 || errno != ESRCH; }

/* A rank of this machine that has not answered and whose process does not exist; -1: none. */
static int first_gone(int count)
{
    for (int i = 0; i < count; i++) {
        if (requests[i] == MPI_REQUEST_NULL) continue;
        const int pid = pids[peers[i]];
        if (pid && !is_here(pid)) return peers[i];
    }
    return -1;
}

/* Several ranks see the loss of `lost`, and one line about it is enough: a rank waits as long as
 * lower ones may say it, and mpirun ends it meanwhile. mpirun takes more than half a second if it
 * has lost a host. Where no lower rank is left, mpirun ends the job itself, so there is no time to
 * wait. */
static void wait_for_end(int lost)
{
    enum { EACH = 2000, MOST = 6000 }; /* milliseconds */
    int lower = 0;
    for (int r = 0; r < self.rank; r++) lower += r != lost && (!pids[r] || is_here(pids[r]));
    const int wanted = EACH * lower;
    const int wait = wanted < MOST ? wanted : MOST;
    const struct timespec t = { wait / 1000, wait % 1000 * 1000000L };
    const bool is_told = nanosleep(&t, NULL) != 0; /* by mpirun's SIGTERM */
    if (is_told) syscall(SYS_exit_group, 1);
}

/* ---- waiting ---- */
static void answer_questions(void)
{
    for (;;) {
        char nothing = 0;
        int there = 0;
        MPI_Status from;
        const int code = MPI_Iprobe(MPI_ANY_SOURCE, QUESTION, MPI_COMM_WORLD, &there, &from);
        if (code != MPI_SUCCESS || !there) return;
        MPI_Recv(&nothing, 1, MPI_CHAR, from.MPI_SOURCE, QUESTION, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
        MPI_Send(&nothing, 1, MPI_CHAR, from.MPI_SOURCE, ANSWER, MPI_COMM_WORLD);
    }
}

static int attend(void)
{
    answer_questions();
    for (int r = 0; r < self.size; r++) {
        if (r == self.rank || !pids[r] || is_here(pids[r])) continue;
        wait_for_end(r);
        return r;
    }
    return -1;
}

/* Ranks may be listed twice; who has answered once has answered. Requests that stay are those of
 * ranks that never answer: the job is over. */
static int absent(const int *ranks, int count, double seconds)
{
    bool *answered = calloc((size_t)self.size, sizeof *answered);
    MPI_Request *asked = calloc((size_t)self.size, sizeof *asked);
    if (!answered || !asked) return -1;
    char nothing = 0;
    answered[self.rank] = true;
    for (int r = 0; r < self.size; r++)
        if (r != self.rank)
            MPI_Isend(&nothing, 1, MPI_CHAR, r, QUESTION, MPI_COMM_WORLD, &asked[r]);
    const double end = now() + seconds;
    int waiting = self.size - 1;
    for (int turn = 0; waiting > 0 && now() < end; turn++) {
        int there = 0;
        MPI_Status from;
        answer_questions();
        MPI_Iprobe(MPI_ANY_SOURCE, ANSWER, MPI_COMM_WORLD, &there, &from);
        if (there) {
            MPI_Recv(&nothing, 1, MPI_CHAR, from.MPI_SOURCE, ANSWER, MPI_COMM_WORLD,
                     MPI_STATUS_IGNORE);
            waiting -= !answered[from.MPI_SOURCE];
            answered[from.MPI_SOURCE] = true;
        }
        pause_a_little(turn);
    }
    int first = -1;
    for (int i = count - 1; i >= 0; i--)
        if (!answered[ranks[i]]) first = ranks[i];
    free(answered);
    if (first >= 0) wait_for_end(first);
    return first;
}

static int exchange(const sz_message *messages, int count, double seconds, int *late)
{
    *late = -1;
    patience = seconds;
    int total = 0;
    for (int i = 0; i < count; i++) total += pieces(messages[i].bytes);
    if (reserve(total) != 0) return -1;
    const int received = start(messages, count, false, 0);
    const int used = received < 0 ? -1 : start(messages, count, true, received);
    if (used < 0) return -1;

    static const double EVERY = 0.2; /* seconds between looks at the processes */
    const double end = now() + seconds;
    double look = now() + EVERY;
    for (int turn = 0;; turn++) {
        int done = 0;
        const int code = MPI_Testall(used, requests, &done, statuses);
        if (code != MPI_SUCCESS) return fail_exchange(received, code);
        if (done) return check_sizes(received);
        if (core->interrupted()) return core->fail("interrupted");
        if (turn % 64 == 63 && now() > end) {
            *late = first_unfinished(used);
            wait_for_end(*late);
            return core->fail("a rank does not answer");
        }
        if (turn % 64 == 63 && now() > look) {
            look = now() + EVERY;
            answer_questions();
            *late = first_gone(used);
            if (*late < 0) continue;
            wait_for_end(*late);
            return -2;
        }
        pause_a_little(turn);
    }
}

/* ---- the job ---- */
static void abort_all(int status) { MPI_Abort(MPI_COMM_WORLD, status); }

/* The end of the program. A rank that never comes must not keep the others: MPI_Finalize would. */
static void finish(void)
{
    int over = 0;
    MPI_Finalized(&over);
    if (over) return;
    MPI_Request all;
    if (MPI_Ibarrier(MPI_COMM_WORLD, &all) != MPI_SUCCESS) return abort_all(1);
    const double end = now() + patience;
    for (int turn = 0, done = 0; !done; turn++) {
        if (MPI_Test(&all, &done, MPI_STATUS_IGNORE) != MPI_SUCCESS) return abort_all(1);
        if (!done && now() > end) return abort_all(1);
        pause_a_little(turn);
    }
    MPI_Finalize();
}

static int find_hosts(void)
{
    char own[MPI_MAX_PROCESSOR_NAME] = "";
    int length = 0;
    hosts = calloc((size_t)self.size, SZ_HOST_NAME);
    if (!hosts) return core->fail("no memory for the names of hosts");
    MPI_Get_processor_name(own, &length);
    own[SZ_HOST_NAME - 1] = 0;
    const int code = MPI_Allgather(own, SZ_HOST_NAME, MPI_CHAR, hosts, SZ_HOST_NAME, MPI_CHAR,
                                   MPI_COMM_WORLD);
    if (code != MPI_SUCCESS) return fail_mpi("the names of hosts", code);
    self.hosts = (const char(*)[SZ_HOST_NAME])hosts;
    return 0;
}

/* hosts is known. Containers may share a name, but not their processes: a rank that cannot be seen
 * now, when all have just spoken, counts as one of another machine. */
static int find_processes(void)
{
    const int own = getpid();
    pids = calloc((size_t)self.size, sizeof *pids);
    if (!pids) return core->fail("no memory for the processes of the ranks");
    const int code = MPI_Allgather(&own, 1, MPI_INT, pids, 1, MPI_INT, MPI_COMM_WORLD);
    if (code != MPI_SUCCESS) return fail_mpi("the processes of the ranks", code);
    for (int i = 0; i < self.size; i++)
        if (strcmp(hosts[i], hosts[self.rank]) != 0 || !is_here(pids[i])) pids[i] = 0;
    return 0;
}

const sz_transport *sz_transport_open(const sz_transport_core *given)
{
    core = given;
    int have = 0;
    const int code = MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &have);
    if (code != MPI_SUCCESS) {
        fail_mpi("MPI does not start", code);
        return NULL;
    }
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &self.rank);
    MPI_Comm_size(MPI_COMM_WORLD, &self.size);
    self.version = SZ_TRANSPORT_VERSION;
    self.exchange = exchange;
    self.attend = attend;
    self.absent = absent;
    self.abort = abort_all;
    if (find_hosts() != 0 || find_processes() != 0) return NULL;
    atexit(finish);
    return &self;
}
