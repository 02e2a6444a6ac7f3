#!/bin/sh
# Small codecs of each kind, for benchmarks/architectures.py: sh benchmarks/train_architectures.sh RUNS TRAIN [STEPS]
# Two lambdas each; the zoo's transforms are taken where their shapes fit. Each run goes on where it was stopped;
# what is complete is skipped.
set -e
runs=$1 data=$2 steps=${3:-20000} zoo=src/rdquant/zoo

train() { # ARCHITECTURE LAMBDA STEPS options...
    run=$runs/$1-$2 lambda=0.$2
    architecture=$1 count=$3
    shift 3
    [ -f "$run/model.safetensors" ] || rdquant train --data "$data" --run "$run" --lambda "$lambda" --steps "$count" \
        --set "architecture=\"$architecture\"" --set 'optimizer="muon"' "$@"
}

for l in 0130 0035; do
    # contexts on top of the zoo's transforms learn fast
    train mbt2018 "$l" $((steps / 4)) --init "$zoo/mean-scale-s-$l.safetensors" --set lr=1e-3
    train cheng2020-anchor "$l" "$steps" --set N=48 --set M=48 --set lr=1e-3
    train elic2022-official "$l" "$steps" --set N=48 --set M=96 --set 'options={"groups":[8,8,16,24,40]}' --set lr=1e-3
    train window-attention "$l" "$steps" --set N=64 --set M=96 --set lr=1e-3
done
