#!/usr/bin/env bash
# Test on the GPUs of one machine: tools/dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
set -euo pipefail
usage="usage: $0 CONFIG CHECKPOINT GPUS [options]"
config=${1:?$usage} checkpoint=${2:?$usage} gpus=${3:?$usage}
torchrun --nproc-per-node="$gpus" --master-port="${PORT:-29500}" \
    "$(dirname "$0")/test.py" "$config" "$checkpoint" --launcher pytorch "${@:4}"
