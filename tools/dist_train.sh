#!/usr/bin/env bash
# Train on the GPUs of one or several machines: tools/dist_train.sh CONFIG GPUS [options of train.py]
# On several machines, also set NNODES, NODE_RANK, MASTER_ADDR and, if 29500 is taken, PORT.
set -euo pipefail
usage="usage: $0 CONFIG GPUS [options]"
config=${1:?$usage} gpus=${2:?$usage}
torchrun --nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}" --nproc-per-node="$gpus" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${PORT:-29500}" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "${@:3}"
