#!/bin/bash
# Serve on a SLURM cluster for some hours: one node, and an address that the job's output tells.
#
#   sbatch examples/deploy/slurm.sh runs/mine --slots 16
#
# Then, from where you sit:  ssh -L 8000:NODE:8000 login-node, and open http://127.0.0.1:8000
#
#SBATCH --job-name=gptj-serve
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --signal=TERM@90
# The last line: SLURM says so 90 seconds before the end, and requests under way finish.
set -euo pipefail

# Other users reach the node as well: a key of this job's own, unless there are keys already.
if [[ -z "${GPTJ_API_KEYS:-}" ]]; then
  GPTJ_API_KEYS="job $(openssl rand -hex 16)"
  echo "the API key is ${GPTJ_API_KEYS#job }"
fi
export GPTJ_API_KEYS

exec srun gptj serve "$@" --host "$(hostname)"
