#!/bin/sh
# rd-s from nothing: sh benchmarks/train_zoo.sh RUN TRAIN. About nine hours of one core; goes on where it stopped.
# RUN/plain is for plain rounding; RUN/larger, again, third, fourth, fifth and sixth go on from it with larger crops, each
# from a high rate down; RUN/last goes on with the levels that a trellis chooses. The zoo's plain one was made of two
# runs: 1,511 steps at the full rate, then 23,500 of cosine decay; its last five had products in bfloat16, and RUN/again a
# decay over 13,500 steps, then 17,000, then 15,000, and RUN/fourth one over 13,000, then 16,500, as time was seen to allow.
# The zoo's integers are then made by: python benchmarks/rd_s.py store --run RUN/last --calib TRAIN
# On a GPU: add --set batch=64, and fewer steps.
set -e
run=$1 data=$2
train() { # RUN INIT options...
    out=$run/$1 init=$2
    shift 2
    [ -f "$out/model.safetensors" ] && return
    [ -f "$out/config.json" ] && { rdquant train --data "$data" --run "$out"; return; }
    rdquant train --data "$data" --run "$out" ${init:+--init "$init"} --set 'architecture="unshuffle8"' --set N=64 \
        --set M=320 --set 'optimizer="muon"' --set lr_final=1e-6 "$@"
}
train plain "" --set 'start="components"' --set lr=1e-3 --set edge_lr=0.2 --set weight_decay=0.03 \
    --set steps=25000 --set validate_every=2000
longer() { # RUN INIT LR SEED STEPS options...
    out=$1 init=$2 lr=$3 seed=$4 steps=$5
    shift 5
    train "$out" "$run/$init/model.safetensors" --set 'start="components"' --set lr="$lr" --set edge_lr=0.2 \
        --set weight_decay=0.03 --set crop=192 --set batch=4 --set rate_weight=0.45 --set seed="$seed" \
        --set steps="$steps" --set validate_every=2000 "$@"
}
longer larger plain 6e-4 5 7800
longer again larger 6e-4 11 15000 --set compile=false
longer third again 4e-4 13 5500 --set compile=false
longer fourth third 5e-4 17 16500 --set compile=false
longer fifth fourth 5e-4 19 9500 --set compile=false
longer sixth fifth 5e-4 23 18500 --set compile=false
longer last sixth 3e-4 29 9000 --set compile=false --set 'latent_mode="quantized"' --set 'quantizer="tcq8"' \
    --set quantizer_step=0.6 --set coherence=2.0
