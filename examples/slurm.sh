#!/bin/bash
# slurm.sh - a batch job for Slurm: one rank on each GPU of two machines with four.
#
#     sbatch examples/slurm.sh data.train_files=hub:Ricky06662/refCOCOg_2k_840 ...
#
# The arguments go to the recipe. Two minutes before the time limit Slurm sends SIGUSR1 to the
# ranks: the run saves its last finished step and ends. Submitted again, the job goes on from there.
# The ranks meet over TCP at the first node. --mpi=pmix in place of --mpi=none uses Open MPI, whose
# messages also go through InfiniBand.
#SBATCH --job-name=segzero
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@120
#SBATCH --output=segzero-%j.txt

set -eu
segzero=${SEGZERO:-segzero}

# Without GPUs: SEGZERO_DEVICE=cpu sbatch --gpus-per-node=0 examples/slurm.sh ...
export SEGZERO_DEVICE=${SEGZERO_DEVICE-cuda}

# Names a machine that differs, and says how fast they talk.
srun --mpi=none "$segzero" doctor

srun --mpi=none --kill-on-bad-exit=1 "$segzero" recipes/refcocog_grpo.lua \
    trainer.experiment_name=refcocog_slurm trainer.find_last_checkpoint=true "$@"
