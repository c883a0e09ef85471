#!/bin/bash
# Train on a Cloud TPU pod slice: one process a VM, which JAX finds by the VM's own metadata.
#
#   examples/cluster/tpu_pod.sh my-pod us-central2-b --data gs-mount/data --model gpt-j-6b \
#     --out gs-mount/runs/mine --mesh.fsdp 16 --mesh.tensor 2 --dtype bfloat16
#
# The first two words are the slice and its zone, the rest goes to `gptj train` on every VM. Data
# and out lie in a folder that all VMs share (Filestore, or a bucket mounted with gcsfuse).
# `pip install gptj-jax[tpu]` on every VM first, in the same way. Once more resumes.
#
# Checked: the command that reaches each VM, with a gcloud that prints it; not on a pod.

set -euo pipefail
pod=$1 zone=$2
shift 2
gcloud compute tpus tpu-vm ssh "$pod" --zone "$zone" --worker=all \
  --command "$(printf '%q ' gptj train "$@")"
