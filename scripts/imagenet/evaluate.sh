#!/usr/bin/env bash
# Attack a trained network with the paper's attacks and stronger ones, the images divided among the GPUs of a machine.
#
#   GPUS=8 scripts/imagenet/evaluate.sh runs/lrnet26_adv /path/to/imagenet
#
# The last process joins the shards by itself. What is finished is not done again.
set -euo pipefail

RUN=${1:?folder of a finished run}
ROOT=${2:?folder of ImageNet}
attack() {
  torchrun --nproc-per-node "${GPUS:-8}" -m robust_lr attack --checkpoint "$RUN" --data imagenet --root "$ROOT" "$@"
}
attack --targeted
attack --untargeted
attack --untargeted --set steps=100
attack --protocol autoattack-standard-imagenet --limit 5000
attack --protocol sweep-eps --limit 1000
