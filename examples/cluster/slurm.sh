#!/bin/bash
# Train on a SLURM cluster: one process a GPU, which JAX finds by what srun tells each.
#
#   sbatch examples/cluster/slurm.sh --data data/mine --model gpt-j-6b --out runs/mine \
#     --mesh.fsdp 8 --mesh.tensor 4
#
# All words go to `gptj train`; data and out lie on a file system that all nodes share. Before the
# time limit SLURM signals every process: the run is saved and ends, and the same words submitted
# again go on from there. When a node is lost the others end and name it, and the job is queued again.
#
# Checked: with an srun that starts two local processes with SLURM's variables; not on a cluster.

#SBATCH --job-name=gptj
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=gptj-%j.log

srun --kill-on-bad-exit=0 gptj train "$@"
code=$?

# 75: a host was lost, 128 and above: killed. Anything else the same command would meet again.
if [ "$code" -eq 75 ] || [ "$code" -ge 128 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
