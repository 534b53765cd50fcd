#!/usr/bin/env bash
# Train one network of Table 9 on several machines without a job system: the same command on each of them.
#
#   HOST=first-machine NODES=4 GPUS=8 scripts/imagenet/train_torchrun.sh imagenet/lrnet26_adv /path/to/imagenet OUT
#
# The machines meet at HOST:PORT; the first process writes to OUT. Run it again to go on with a run that was stopped.
set -euo pipefail

CONFIG=${1:?config, e.g. imagenet/lrnet26_adv}
ROOT=${2:?folder of ImageNet with train/ and val/}
OUT=${3:?folder of the run}
RESUME=()
[ -d "$OUT" ] && RESUME=(--resume)

exec torchrun --nnodes "${NODES:-1}" --nproc-per-node "${GPUS:-8}" \
  --rdzv-id "${JOB:-robust-lr}" --rdzv-backend c10d --rdzv-endpoint "${HOST:?the first machine}:${PORT:-29500}" \
  -m robust_lr adv-train "$CONFIG" --set data.root="$ROOT" --out "$OUT" "${RESUME[@]}"
