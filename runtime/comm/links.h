/* links.h - the contract between nccl.c and a backend whose devices talk to those of other ranks
 * (core/backend.h; runtime/cuda/nccl.cu). It is to devices what transport.h is to host memory.
 *
 * Device work is in one order, and so are messages: what is sent is what earlier kernels wrote, and
 * later ones read what came. Calls return before the work is done; the host learns of a failure
 * where it waits for the device. Leaves out: which algorithm makes a sum of messages (comm.c).
 */
#ifndef SZ_LINKS_H
#define SZ_LINKS_H

#include "comm/transport.h"
#include <stdint.h>

enum {
    SZ_LINK_ID = 128,        /* bytes of a group's id */
    SZ_LINK_PLACE = 32,      /* bytes of a device's place */
    SZ_LINK_RANKS = 256,     /* most ranks of a group */
    SZ_LINK_MESSAGES = 2048, /* most messages of an exchange */
};

/* A group of ranks whose devices talk to each other. */
typedef struct sz_link sz_link;

typedef struct sz_links {
    /* NULL when devices can talk, else why they cannot, as "there is no libnccl.so.2"; borrowed. */
    const char *(*missing)(void);
    /* Where this process's device is in the machine: ranks on one device have equal texts. 0, or
     * -1 with a message. */
    int (*place)(char text[SZ_LINK_PLACE]);
    /* Makes the id of a new group, with which all its ranks join. 0, or -1 with a message. */
    int (*new_id)(char id[SZ_LINK_ID]);
    /* members [size]: the ranks' numbers in the world, ascending; rank: of this process in the
     * group. Waits for all ranks. NULL with a message. */
    sz_link *(*join)(const char id[SZ_LINK_ID], const int *members, int size, int rank);
    void (*leave)(sz_link *l);

    /* Messages between device memories, with peers by their numbers in the world. Messages of two
     * ranks arrive in the order in which both list them. 0, or -1 with a message. */
    int (*exchange)(sz_link *l, const sz_message *messages, int count);
    /* out [n] = parts[0] + parts[1] + ... in this order, all in device memory; f32, bf16 (added in
     * f32, rounded once) or i32. count: at most SZ_LINK_RANKS. out may be one of the parts. */
    int (*sum)(int dtype, void *out, const void *const *parts, int count, int64_t n);

    /* Copies `count` runs of `run` bytes each, which follow one another, to places that are `pitch`
     * bytes apart. 0, or -1 with a message. */
    int (*copy_runs)(void *to, size_t pitch, const void *from, size_t run, int64_t count);

    /* While the host waits for the device and there is a group, watch(seconds so far) is called
     * every now and then. When it returns -1 with a message, all groups end, and so does the
     * waiting. */
    void (*set_watch)(int (*watch)(double seconds));
    /* Looks after the groups while the host waits for something else. */
    void (*poll)(void);
} sz_links;

#endif
