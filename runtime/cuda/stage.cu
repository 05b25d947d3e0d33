/* stage.cu - the staging buffer: the data that a decode step takes from the host is collected in
 * pinned memory and sent in one copy, before the step's ops ask for it (device.cuh, stage.cuh).
 * Leaves out: two buffers, so that one could be filled while the other is sent; decode.cu says
 * why. */
#include "stage.cuh"
#include <cstdlib>

enum : size_t { ALIGNMENT = 256 };
enum { STAGED = 16 };

static bool recording;

void sz_cuda_recording(bool on) { recording = on; }
bool sz_cuda_is_recording(void) { return recording; }

int sz_cuda_not_recording(const char *what)
{
    return recording ? sz_fail("cuda: %s while a decode step is recorded", what) : 0;
}

struct staged_entry {
    sz_cuda_cache_entry entry; /* first, so that an entry's address is that of its struct */
    int32_t key[4];
    const void *source; /* the host bytes; they exist as long as the step */
    size_t source_bytes;
    size_t offset; /* in the buffer */
};

static struct {
    char *host, *device;
    size_t room, used;
    staged_entry entry[STAGED];
    int count;
    enum { CLOSED, OPEN, SENT } state;
} stage;

/* Makes room for `bytes` bytes in total, and keeps the contents on the host. */
static int grow(size_t bytes)
{
    if (bytes <= stage.room) return 0;
    size_t room = stage.room ? stage.room : (size_t)1 << 20;
    while (room < bytes) room *= 2;
    char *host = NULL;
    char *device = (char *)sz_cuda_allocate(room);
    if (!device ||
        sz_cuda_check(cudaHostAlloc(&host, room, cudaHostAllocDefault), "pinned memory") != 0) {
        sz_cuda_release(device);
        return -1;
    }
    if (stage.used) memcpy(host, stage.host, stage.used);
    if (stage.host) cudaFreeHost(stage.host);
    sz_cuda_release(stage.device);
    stage.host = host;
    stage.device = device;
    stage.room = room;
    return 0;
}

/* Reserves the next bytes of the buffer and returns their offset; (size_t)-1 with a message. */
static size_t reserve(size_t bytes)
{
    const size_t offset = (stage.used + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (grow(offset + bytes) != 0) return (size_t)-1;
    stage.used = offset + bytes;
    return offset;
}

/* ---- entries ---- */
bool sz_cuda_stage_is_open(void) { return stage.state == stage.OPEN; }

sz_cuda_cache_entry *sz_cuda_staged(const void *source, size_t bytes, const int32_t key[4])
{
    if (stage.state != stage.SENT) return NULL;
    for (staged_entry *e = stage.entry; e < stage.entry + stage.count; e++)
        if (e->source == source && e->source_bytes == bytes &&
            memcmp(e->key, key, sizeof e->key) == 0)
            return &e->entry;
    return NULL;
}

sz_cuda_cache_entry *sz_cuda_stage_entry(const void *source, size_t bytes, const int32_t key[4])
{
    if (stage.count == STAGED)
        return (sz_cuda_cache_entry *)sz_null("cuda: a step has more than %d tables", (int)STAGED);
    staged_entry *e = &stage.entry[stage.count++];
    memset(e, 0, sizeof *e);
    memcpy(e->key, key, sizeof e->key);
    e->source = source;
    e->source_bytes = bytes;
    return &e->entry;
}

bool sz_cuda_is_staged(const sz_cuda_cache_entry *entry)
{
    const char *p = (const char *)entry;
    return p >= (const char *)stage.entry && p < (const char *)(stage.entry + STAGED);
}

int sz_cuda_stage_fill(sz_cuda_cache_entry *entry, const void *host, size_t bytes)
{
    staged_entry *e = (staged_entry *)entry;
    e->offset = reserve(bytes);
    if (e->offset == (size_t)-1) return -1;
    memcpy(stage.host + e->offset, host, bytes);
    return 0;
}

/* ---- a step ---- */
void sz_cuda_stage_open(void)
{
    stage.used = 0;
    stage.count = 0;
    stage.state = stage.OPEN;
}

int sz_cuda_stage_tensor(const sz_tensor *t)
{
    sz_cuda_cache_entry *entry = sz_cuda_cache_get(t, 0, 0, 0, 0);
    return entry ? sz_cuda_cache_fill(entry, t->data, sz_bytes(t)) : -1;
}

char *sz_cuda_stage_bytes(size_t bytes, size_t *offset)
{
    *offset = reserve(bytes);
    return *offset == (size_t)-1 ? NULL : stage.host + *offset;
}

int sz_cuda_stage_send(size_t result_bytes, sz_cuda_stage *to)
{
    const size_t bytes = stage.used;
    const size_t results = reserve(result_bytes);
    if (results == (size_t)-1) return -1;
    for (int i = 0; i < stage.count; i++)
        stage.entry[i].entry.device = stage.device + stage.entry[i].offset;
    *to = sz_cuda_stage{ stage.device, stage.host + results, stage.device + results, bytes };
    stage.state = stage.SENT;
    cudaError_t e = cudaMemcpyAsync(stage.device, stage.host, bytes, cudaMemcpyHostToDevice,
                                    sz_cuda_stream());
    return sz_cuda_check(e, "a copy to the device");
}

void sz_cuda_stage_close(void) { stage.state = stage.CLOSED; }
