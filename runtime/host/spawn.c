/* spawn.c - `--ranks N` without Open MPI: this process starts N of itself, which meet over TCP, and
 * waits for them (runtime/comm/launch.h has the variables).
 *
 * They are a process group of their own, so Ctrl-C comes here only, and is passed on to all; a
 * second one within two seconds ends all at once. Rank 0 has the standard input. When a rank has
 * failed, the others have three seconds to end by themselves.
 * Leaves out: ranks on other machines.
 */
#define _GNU_SOURCE
#include "host.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static pid_t group; /* of the ranks */

static time_t seconds_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec;
}

/* A port that nobody listens at. 0 with the reason in errno. */
static int free_port(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t length = sizeof address;
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return 0;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int port = 0;
    if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        getsockname(fd, (struct sockaddr *)&address, &length) == 0)
        port = ntohs(address.sin_port);
    close(fd);
    return port;
}

static void set_number(const char *name, long n)
{
    char text[32];
    snprintf(text, sizeof text, "%ld", n);
    setenv(name, text, 1);
}

/* The child: one rank. Does not return. */
static void become_rank(long rank, pid_t parent, char **list)
{
    setpgid(0, group);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(EXIT_SCRIPT);
    if (rank > 0) {
        const int null = open("/dev/null", O_RDONLY);
        if (null >= 0) dup2(null, STDIN_FILENO);
    }
    set_number("RANK", rank);
    set_number("LOCAL_RANK", rank);
    execv(list[0], list);
    fprintf(stderr, "segzero: --ranks: %s: %s\n", list[0], strerror(errno));
    _exit(EXIT_SCRIPT);
}

/* Waits for all ranks. The status of the first one that failed. */
static int wait_for_all(long count)
{
    enum { GRACE = 3 }; /* seconds */
    int result = 0;
    time_t end = 0; /* when those that are left are killed */
    while (count > 0) {
        int status;
        const pid_t child = waitpid(-group, &status, result ? WNOHANG : 0);
        if (child < 0 && errno != EINTR) break;
        if (child > 0) count--;
        if (child > 0 && !result && status) {
            result = sz_child_status(status);
            end = seconds_now() + GRACE;
        }
        if (!result || child > 0) continue;
        const struct timespec t = { 0, 50 * 1000 * 1000 };
        nanosleep(&t, NULL);
        if (seconds_now() > end) kill(-group, SIGKILL);
    }
    return sz_passed_signal() && result ? 128 + sz_passed_signal() : result;
}

int sz_spawn_ranks(long count, char **list)
{
    /* What all ranks know. */
    const pid_t parent = getpid();
    const int port = free_port();
    if (!port) {
        fprintf(stderr, "segzero: --ranks: no free port: %s\n", strerror(errno));
        return EXIT_SCRIPT;
    }
    setenv("MASTER_ADDR", "127.0.0.1", 1);
    set_number("MASTER_PORT", port);
    set_number("WORLD_SIZE", count);
    set_number("LOCAL_WORLD_SIZE", count);

    /* The first rank's process group is that of all. */
    sz_pass_signals(0, SIGKILL);
    for (long rank = 0; rank < count; rank++) {
        const pid_t child = fork();
        if (child == 0) become_rank(rank, parent, list);
        if (child < 0) {
            fprintf(stderr, "segzero: --ranks: %s\n", strerror(errno));
            if (group) kill(-group, SIGKILL);
            return EXIT_SCRIPT;
        }
        if (rank == 0) {
            group = child;
            sz_pass_signals_to(-group);
        }
        setpgid(child, group);
    }
    return wait_for_all(count);
}
