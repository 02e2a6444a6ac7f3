#!/bin/sh
# rd-s from nothing: sh benchmarks/train_zoo.sh RUN TRAIN. About three hours of one core; goes on where it stopped.
# The zoo's own was made of two runs of this recipe: 1,511 steps at the full rate, then 23,500 of cosine decay.
# On a GPU: add --set batch=64, and fewer steps.
set -e
run=$1 data=$2
[ -f "$run/config.json" ] && exec rdquant train --data "$data" --run "$run"
exec rdquant train --data "$data" --run "$run" --set 'architecture="unshuffle8"' --set N=64 --set M=320 \
    --set 'start="components"' --set 'optimizer="muon"' --set lr=1e-3 --set lr_final=1e-6 --set edge_lr=0.2 \
    --set weight_decay=0.03 --set steps=25000 --set validate_every=2000
