#!/usr/bin/env bash
# Train under Slurm: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=5] [SRUN_ARGS=...] \
#     tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of train.py]
set -euo pipefail
usage="usage: $0 PARTITION JOB_NAME CONFIG [options]"
partition=${1:?$usage} job=${2:?$usage} config=${3:?$usage}
gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8}
(( per_node > gpus )) && per_node=$gpus
# shellcheck disable=SC2086  # SRUN_ARGS holds several arguments
srun -p "$partition" --job-name="$job" --gres="gpu:$per_node" --ntasks="$gpus" \
    --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} python -u "$(dirname "$0")/train.py" "$config" --launcher slurm "${@:4}"
