/* guards.c - a pattern around heap blocks and after kernel workspace, so that tests see writes
 * outside of them. Off unless sz_debug_guards switches it on.
 * Leaves out: reads outside, and the arena's tensors (the address sanitizer sees those).
 */
#include "memory.h"
#include "device.h"

enum { GUARD_BYTE = 0xa5 };

static bool on;
static int64_t broken;

bool sz_guards_on(void) { return on; }

int64_t sz_debug_guards(int wanted)
{
    const int64_t count = broken;
    on = wanted != 0;
    broken = 0;
    return count;
}

void sz_guard_write(int device, char *p) { sz_bytes_fill(device, p, GUARD_BYTE, SZ_GUARD); }

void sz_guard_check(int device, const char *p)
{
    unsigned char bytes[SZ_GUARD];
    bool overwritten = sz_bytes_copy(SZ_CPU, bytes, device, p, SZ_GUARD) != 0;
    for (size_t i = 0; i < SZ_GUARD; i++) overwritten |= bytes[i] != GUARD_BYTE;
    broken += overwritten;
}
