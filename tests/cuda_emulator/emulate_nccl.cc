/* emulate_nccl.cc - the emulated NCCL (emulate_nccl.h): files as messages between processes.
 *
 * In the group's folder "rank-R" says that rank R has joined and on which device it is; "S-R-N" is
 * the N-th message of rank S to rank R. A file gets its name when it is complete. The receiver
 * removes it, and the last rank to leave removes the folder.
 * Leaves out: what emulate_nccl.h leaves out. */
#ifdef SZ_EMULATE
#include "emulate_nccl.h"
#include "emulate_internal.h"
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <memory>
#include <string>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <vector>

struct sz_emu_comm {
    std::string folder;
    int size, rank;
    bool is_aborted;
    std::vector<uint64_t> sent, received; /* [size] */
};

static std::string last_error;

static ncclResult_t fail(ncclResult_t result, const std::string &why)
{
    last_error = why;
    return result;
}

const char *ncclGetLastError(ncclComm_t) { return last_error.c_str(); }

ncclResult_t ncclGetVersion(int *version)
{
    const char *given = getenv("SEGZERO_EMULATE_NCCL");
    *version = given && atoi(given) > 0 ? atoi(given) : 22809;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    switch (result) {
    case ncclSuccess: return "no error";
    case ncclSystemError: return "unhandled system error";
    case ncclInvalidArgument: return "invalid argument";
    case ncclInvalidUsage: return "invalid usage";
    case ncclRemoteError: return "remote process exited or there was a network error";
    default: return "internal error";
    }
}

/* ---- files ---- */
static void pause_a_little()
{
    const struct timespec t = { 0, 100 * 1000 };
    nanosleep(&t, NULL);
}

/* Writes a file that appears whole. */
static bool write_file(const std::string &path, const void *bytes, size_t count)
{
    const std::string temporary = path + ".new";
    FILE *file = fopen(temporary.c_str(), "wb");
    if (!file) return false;
    const bool written = fwrite(bytes, 1, count, file) == count;
    return fclose(file) == 0 && written && rename(temporary.c_str(), path.c_str()) == 0;
}

/* Reads a file of exactly this size and removes it. Returns false if it is not there yet. */
static bool take_file(const std::string &path, void *bytes, size_t count)
{
    FILE *file = fopen(path.c_str(), "rb");
    if (!file) return false;
    struct stat s;
    if (fstat(fileno(file), &s) != 0 || (size_t)s.st_size != count)
        sz_emu_fatal("NCCL: message %s has %lld bytes and %zu are expected", path.c_str(),
                     (long long)s.st_size, count);
    if (fread(bytes, 1, count, file) != count)
        sz_emu_fatal("NCCL: message %s is not readable", path.c_str());
    fclose(file);
    unlink(path.c_str());
    return true;
}

/* ---- groups ---- */
ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    const char *base = getenv("SEGZERO_EMULATE_LINKS");
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "%.90s/segzero-nccl-XXXXXX",
             base && *base ? base : "/dev/shm");
    return mkdtemp(id->internal) ? ncclSuccess : fail(ncclSystemError, "no folder for messages");
}

static std::string rank_file(const sz_emu_comm *c, int rank)
{
    return c->folder + "/rank-" + std::to_string(rank);
}

/* Waits for all ranks, as NCCL does, and compares their devices. */
static ncclResult_t meet(const sz_emu_comm *c, const std::string &device)
{
    for (int r = 0; r < c->size; r++) {
        char text[64] = "";
        FILE *file = NULL;
        while (!(file = fopen(rank_file(c, r).c_str(), "rb"))) pause_a_little();
        if (!fgets(text, sizeof text, file)) text[0] = 0;
        fclose(file);
        if (r == c->rank || device != text) continue;
        return fail(ncclInvalidUsage, "Duplicate GPU detected : rank " + std::to_string(c->rank) +
                                          " and rank " + std::to_string(r) +
                                          " both on CUDA device " + device);
    }
    return ncclSuccess;
}

static std::vector<ncclComm_t> groups; /* not destroyed yet */

/* A program ends without destroying its groups. Files of a rank that was killed stay. */
static void remove_files(const sz_emu_comm *c)
{
    unlink(rank_file(c, c->rank).c_str());
    rmdir(c->folder.c_str());
}

static void remove_all_files(void)
{
    for (const sz_emu_comm *c : groups) remove_files(c);
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int size, ncclUniqueId id, int rank)
{
    const char *given = getenv("SEGZERO_EMULATE_NCCL");
    if (given && atoi(given) == 0) return fail(ncclSystemError, "SEGZERO_EMULATE_NCCL=0");
    if (rank < 0 || rank >= size) return fail(ncclInvalidArgument, "the rank");
    char device[64] = "";
    int own = 0;
    if (cudaGetDevice(&own) != cudaSuccess ||
        cudaDeviceGetPCIBusId(device, sizeof device, own) != cudaSuccess)
        return fail(ncclUnhandledCudaError, "no device");
    sz_emu_comm *c = new sz_emu_comm{ id.internal, size, rank, false, {}, {} };
    c->sent.resize((size_t)size);
    c->received.resize((size_t)size);
    if (!write_file(rank_file(c, rank), device, strlen(device)))
        return fail(ncclSystemError, "no file in " + c->folder);
    const ncclResult_t result = meet(c, device);
    if (result == ncclSuccess) *comm = c;
    if (groups.empty()) atexit(remove_all_files);
    groups.push_back(c);
    return result;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    remove_files(comm);
    for (size_t i = 0; i < groups.size(); i++)
        if (groups[i] == comm) groups.erase(groups.begin() + (long)i);
    delete comm;
    return ncclSuccess;
}

/* Work that waits for other ranks ends; what it was to receive is not there. */
ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    comm->is_aborted = true;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t *result)
{
    *result = ncclSuccess;
    return ncclSuccess;
}

/* ---- messages ---- */
struct message {
    ncclComm_t comm;
    cudaStream_t stream;
    char *bytes;
    size_t count;
    int peer;
    bool is_send;
};
static std::vector<message> group;
static int depth; /* of ncclGroupStart */

static std::string message_file(const sz_emu_comm *c, int from, int to, uint64_t number)
{
    return c->folder + "/" + std::to_string(from) + "-" + std::to_string(to) + "-" +
           std::to_string(number);
}

/* Returns whether the message has been sent, or has come. */
static bool carry_out(const message &m)
{
    sz_emu_comm *c = m.comm;
    sz_emu_access access;
    if (c->is_aborted) return true;
    if (m.is_send) {
        uint64_t *number = &c->sent[(size_t)m.peer];
        if (!write_file(message_file(c, c->rank, m.peer, *number), m.bytes, m.count))
            sz_emu_fatal("NCCL: no message can be written to %s", c->folder.c_str());
        ++*number;
        return true;
    }
    uint64_t *number = &c->received[(size_t)m.peer];
    if (!take_file(message_file(c, m.peer, c->rank, *number), m.bytes, m.count)) return false;
    ++*number;
    return true;
}

/* The messages of a group, as one entry of the stream: what is sent, then what is received. */
struct exchange {
    std::vector<message> messages;
    std::vector<bool> done;

    bool run()
    {
        done.resize(messages.size());
        for (int sends = 1; sends >= 0; sends--)
            for (size_t i = 0; i < messages.size(); i++) {
                if (done[i] || messages[i].is_send != (sends == 1)) continue;
                /* A later message of a peer must not overtake. */
                done[i] = carry_out(messages[i]);
                if (!done[i]) return false;
            }
        done.clear(); /* a graph may launch it again */
        return true;
    }
};

ncclResult_t ncclGroupStart(void)
{
    depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (depth == 0) return fail(ncclInvalidUsage, "ncclGroupEnd without ncclGroupStart");
    if (--depth > 0 || group.empty()) return ncclSuccess;
    auto work = std::make_shared<exchange>();
    work->messages.swap(group);
    sz_emu_try(work->messages[0].stream, [work] { return work->run(); });
    return ncclSuccess;
}

static ncclResult_t add(message m)
{
    if (m.peer < 0 || m.peer >= m.comm->size || m.peer == m.comm->rank)
        return fail(ncclInvalidArgument, "the peer");
    if (m.comm->is_aborted) return fail(ncclInvalidUsage, "the group was aborted");
    sz_emu_check_memory("an NCCL message", m.bytes, m.count, true);
    group.push_back(m);
    if (depth > 0) return ncclSuccess;
    depth = 1;
    return ncclGroupEnd();
}

ncclResult_t ncclSend(const void *p, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return add(message{ comm, stream, (char *)p, count, peer, true });
}

ncclResult_t ncclRecv(void *p, size_t count, ncclDataType_t, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    return add(message{ comm, stream, (char *)p, count, peer, false });
}
#endif
