#!/bin/bash
# The zoo from nothing: a trunk on small crops, the same trunk on large ones, a decay branch, the export.
# Every stage goes on where it stopped, so the script can be killed and started again at any time.
#
#   DATA=folder RUN=folder benchmarks/train_zoo.sh                            # two CPU cores, hours
#   DATA=folder RUN=folder BATCH=64 TRUNK=18 LARGE=5 DECAY=8000 benchmarks/train_zoo.sh   # a GPU, 25 minutes
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${DATA:?}" "${RUN:?}"
CANDIDATE=${CANDIDATE:-c} BATCH=${BATCH:-8} LR=${LR:-2e-3}
TRUNK=${TRUNK:-600} LARGE=${LARGE:-120} DECAY=${DECAY:-6000}   # minutes, minutes, steps
train() { python "$here/train_zoo.py" --data "$DATA" --save-minutes 3 "$@"; }
mkdir -p "$RUN"
train --candidate "$CANDIDATE" --run "$RUN/trunk" --minutes "$TRUNK" --set batch="$BATCH" lr="$LR"
train --candidate "$CANDIDATE" --run "$RUN/large" --start "$RUN/trunk/state.pt" \
  --minutes "$((TRUNK + LARGE))" --set batch="$((BATCH > 4 ? BATCH / 4 : 1))" crop=256 lr="$LR"
train --candidate "$CANDIDATE" --run "$RUN/decayed" --start "$RUN/large/state.pt" \
  --decay "$DECAY" --set batch="$((BATCH > 4 ? BATCH / 4 : 1))" crop=256 lr="$LR"
echo "$RUN/decayed/model.safetensors"
