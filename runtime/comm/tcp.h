/* tcp.h - the transport over TCP (transport.h): no library, only sockets. Part of the core.
 *
 * Leaves out: encryption and passwords. As with MPI and torch, the ranks' network must be trusted.
 */
#ifndef SZ_COMM_TCP_H
#define SZ_COMM_TCP_H

#include "comm/launch.h"
#include "comm/transport.h"

/* Joins the job that l describes (SZ_LAUNCH_TCP); waits for all ranks. NULL with a message. */
const sz_transport *sz_tcp_open(const sz_launch *l, const sz_transport_core *core);

/* ---- tcp_join.c ---- */

/* A socket to each other rank, sockets [size], and the name of each rank's machine, hosts [size].
 * 0, or -1 with a message; then no socket stays open. */
int sz_tcp_join(const sz_launch *l, const sz_transport_core *core, int *sockets,
                char (*hosts)[SZ_HOST_NAME]);

#endif
