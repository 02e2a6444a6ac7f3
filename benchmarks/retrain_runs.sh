#!/bin/sh
# The runs that benchmarks/retrain.py measures: sh benchmarks/retrain_runs.sh RUNS TRAIN
# Each goes on where it was stopped; what is complete is skipped. About two hours on two cores.
set -e
runs=$1 data=$2 zoo=src/rdquant/zoo lambdas="0035 0067 0130 0250"

retrain() { # NAME LAMBDA INIT options...
    run=$runs/$1-$2 out=$runs/$1-$2/$1-$2.safetensors lambda=0.$2 init=$3
    shift 3
    [ -f "$out" ] || rdquant retrain "$init" --data "$data" --run "$run" -o "$out" --lambda "$lambda" "$@"
}

train() { # FOLDER LAMBDA MODE: all networks, on from the zoo's
    [ -f "$1/model.safetensors" ] || rdquant train --data "$data" --run "$1" --lambda "0.$2" --init "$zoo/mean-scale-s-$2.safetensors" \
        --steps 1500 --set "latent_mode=\"$3\"" --set quantizer_step=0.6 --set lr=6e-4 \
        --set 'optimizer="muon"' --set batch=4 --set crop=192
}

for l in $lambdas; do
    retrain tcq8 "$l" "mean-scale-s-$l" --quantizer tcq8 --steps 1000
    retrain rdoq "$l" "mean-scale-s-$l" --quantizer rdoq --steps 600
    retrain uniform "$l" "mean-scale-s-$l" --quantizer uniform --steps 600
done
for l in $lambdas; do # parents trained with noise, as the papers' are, and what retraining makes of them
    mkdir -p "$runs/noise-$l"
    train "$runs/noise-$l/parent" "$l" noise
    cp "$runs/noise-$l/parent/model.safetensors" "$runs/noise-$l/noise-$l.safetensors"
    of=$runs/noise-$l/noise-$l.safetensors
    retrain tcq8-of-noise "$l" "$of" --quantizer tcq8 --steps 1000
    retrain tcq8-all-of-noise "$l" "$runs/tcq8-of-noise-$l/tcq8-of-noise-$l.safetensors" \
        --quantizer tcq8 --phases all --steps 2000 --set lr=6e-4
    retrain uniform-of-noise "$l" "$of" --quantizer uniform --steps 600
done

# studies at 0.0130
p=mean-scale-s-0130
retrain tcq8-all 0130 "$runs/tcq8-0130/tcq8-0130.safetensors" --quantizer tcq8 --phases all --steps 2000 --set lr=6e-4
retrain online-400 0130 $p --quantizer tcq8 --steps 400
retrain stored-400 0130 $p --quantizer tcq8 --steps 400 --levels stored
retrain stored-400-2 0130 $p --quantizer tcq8 --steps 200 --levels stored --rounds 2
retrain stored-400-4 0130 $p --quantizer tcq8 --steps 100 --levels stored --rounds 4
for mode in switching mixed; do
    train "$runs/tcq8-of-$mode-train-0130" 0130 $mode
    retrain "tcq8-of-$mode" 0130 "$runs/tcq8-of-$mode-train-0130/model.safetensors" --quantizer tcq8 --steps 1000
done
retrain tcq8-on-w6 0130 $p --quantizer tcq8 --steps 1000 --set weight_bits=6
