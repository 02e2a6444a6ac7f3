#!/bin/sh
# Small codecs of each kind, for benchmarks/architectures.py: sh benchmarks/train_architectures.sh RUNS TRAIN [STEPS]
# Two lambdas each, 8 crops of 128x128 a step for mbt2018, 4 for the others; the zoo's transforms are taken where
# their shapes fit, and what has learned at lambda 0.013 goes on at 0.0035. Each run goes on where it was stopped;
# what is complete is skipped. Without torch.compile: so were they trained.
set -e
runs=$1 data=$2 steps=${3:-2000} zoo=src/rdquant/zoo

train() { # ARCHITECTURE LAMBDA STEPS options...
    run=$runs/$1-$2 lambda=0.$2
    architecture=$1 count=$3
    shift 3
    [ -f "$run/model.safetensors" ] || rdquant train --data "$data" --run "$run" --lambda "$lambda" --steps "$count" \
        --set "architecture=\"$architecture\"" --set 'optimizer="muon"' --set compile=false "$@"
}

both() { # ARCHITECTURE options...: from nothing, then from there
    architecture=$1
    shift
    train "$architecture" 0130 "$steps" --set batch=4 --set final_fraction=0.0 --set lr=1.5e-3 "$@"
    train "$architecture" 0035 $((steps * 3 / 10)) --init "$runs/$architecture-0130/model.safetensors" \
        --set batch=4 --set final_fraction=0.0 --set lr=7e-4 "$@"
}

for l in 0130 0035; do
    # contexts on top of the zoo's transforms learn fast
    train mbt2018 "$l" $((steps * 3 / 4)) --init "$zoo/mean-scale-s-$l.safetensors" --set lr=1e-3
done
both cheng2020-anchor --set N=48 --set M=48
both elic2022-official --set N=48 --set M=96 --set 'options={"groups":[8,8,16,24,40]}'
both window-attention --set N=64 --set M=96
