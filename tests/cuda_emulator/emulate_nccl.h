/* emulate_nccl.h - the part of NCCL that runtime/cuda/nccl.cu uses, between processes of one
 * machine: an emulated device has emulated links.
 *
 * A message is a file in a folder that the group's id names, in /dev/shm or the folder that
 * SEGZERO_EMULATE_LINKS names. A sender
 * never waits, a receiver does, in the order of the stream (streams.cc), so that a rank that
 * is missing leaves the stream waiting and the host free, as on a device. Errors that NCCL does not
 * find, messages of different sizes and memory that is not the device's, end the program.
 * SEGZERO_EMULATE_NCCL=n is the version that it says it has, as 22809; 0: new groups fail.
 * Leaves out: collectives, several machines. */
#ifndef SZ_EMULATE_NCCL_H
#define SZ_EMULATE_NCCL_H

#include "emulate.h"

typedef struct sz_emu_comm *ncclComm_t;
enum { NCCL_UNIQUE_ID_BYTES = 128 };
typedef struct {
    char internal[NCCL_UNIQUE_ID_BYTES];
} ncclUniqueId;

typedef enum {
    ncclSuccess = 0,
    ncclUnhandledCudaError = 1,
    ncclSystemError = 2,
    ncclInternalError = 3,
    ncclInvalidArgument = 4,
    ncclInvalidUsage = 5,
    ncclRemoteError = 6,
    ncclInProgress = 7,
} ncclResult_t;
typedef enum { ncclInt8 = 0 } ncclDataType_t;

extern "C" {
ncclResult_t ncclGetVersion(int *version);
const char *ncclGetErrorString(ncclResult_t result);
const char *ncclGetLastError(ncclComm_t comm);
ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRank(ncclComm_t *comm, int size, ncclUniqueId id, int rank);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *result);
ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);
ncclResult_t ncclSend(const void *p, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream);
ncclResult_t ncclRecv(void *p, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream);
}

#endif
