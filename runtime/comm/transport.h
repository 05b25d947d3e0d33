/* transport.h - the contract between comm.c and what carries bytes between ranks: tcp.c, or a
 * library that is opened at run time (mpi.c), exports one function and refers to no symbol of the
 * core.
 *
 * Only one thread calls it. Leaves out: sums and groups, which comm.c makes of messages.
 */
#ifndef SZ_TRANSPORT_H
#define SZ_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>

enum { SZ_TRANSPORT_VERSION = 4, SZ_HOST_NAME = 64 };

/* A message to or from a rank. Messages between two ranks arrive in the order in which both sides
 * list them, so both must list the same sizes; exchange fails if one comes with another size. */
typedef struct {
    void *data;
    size_t bytes;
    int peer;
    bool send;
} sz_message;

/* What the library may use of the core. */
typedef struct {
    /* Leaves the message for sz_last_error; returns -1. */
    int (*fail)(const char *message);
    /* Whether Ctrl-C was pressed; called again and again while the library waits. */
    int (*interrupted)(void);
} sz_transport_core;

typedef struct {
    int version; /* SZ_TRANSPORT_VERSION */
    int rank, size;
    const char (*hosts)[SZ_HOST_NAME]; /* [size] */

    /* Sends and receives all messages; returns when all are done. 0; -1 with a message after an
     * error, an interrupt, or `seconds`; then *late is the peer that did not answer, or -1. -2 when
     * *late has ended: MPI sees that on this machine only, TCP also when a machine is cut off. */
    int (*exchange)(const sz_message *messages, int count, double seconds, int *late);
    /* For a rank that waits for something else, to be called every now and then: answers the ranks
     * that ask whether it is waiting (absent). Returns a rank of this machine that has ended; -1:
     * none. */
    int (*attend)(void);
    /* Asks these ranks whether they wait, too. The first one that has not answered after `seconds`:
     * it computes, has stalled or is gone. -1: all wait. */
    int (*absent)(const int *ranks, int count, double seconds);
    /* Ends all ranks. */
    void (*abort)(int status);
} sz_transport;

/* What the library exports: joins the job, waits for all ranks. NULL with a message. */
__attribute__((visibility("default"))) const sz_transport *sz_transport_open(
    const sz_transport_core *core);

#endif
