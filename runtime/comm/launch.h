/* launch.h - what the launcher that started this process says about the job: its variables.
 *
 *     sz_launch l;
 *     sz_launch_read(&l);
 *     if (l.kind == SZ_LAUNCH_TCP) ...      rank l.rank of l.size, to meet at l.address and l.port
 *
 * | launcher | variables | its processes talk by |
 * | --- | --- | --- |
 * | Open MPI's mpirun, srun --mpi=pmix | OMPI_COMM_WORLD_*, PMIX_RANK | MPI (mpi.c) |
 * | torchrun and its like, segzero --ranks without MPI | RANK, WORLD_SIZE, LOCAL_RANK,
 *   LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT | TCP (tcp.c) |
 * | srun | SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID, SLURM_STEP_NODELIST; MASTER_* if they
 *   are set | TCP |
 *
 * The program and the core both use it, so it refers to nothing of either.
 * Leaves out: other launchers of MPI, whose variables are known only so that they are refused.
 */
#ifndef SZ_LAUNCH_H
#define SZ_LAUNCH_H

enum { SZ_LAUNCH_ADDRESS = 256, SZ_LAUNCH_TEXT = 512 };

enum {
    SZ_LAUNCH_ALONE, /* one process */
    SZ_LAUNCH_MPI,
    SZ_LAUNCH_TCP,
    SZ_LAUNCH_STRAY /* one of several that cannot be joined; `problem` says why */
};

typedef struct {
    int kind;
    int rank, size;                  /* size 0: MPI knows; rank -1 too */
    int local_rank, local_size;      /* among those of this machine; 0: not known */
    int processors;                  /* of each rank; 0: the launcher does not say */
    char address[SZ_LAUNCH_ADDRESS]; /* TCP: where rank 0 listens */
    int port;
    char problem[SZ_LAUNCH_TEXT];
} sz_launch;

void sz_launch_read(sz_launch *l);

#endif
