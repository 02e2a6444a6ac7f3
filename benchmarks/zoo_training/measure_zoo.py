"""kMAC a pixel, parameters and milliseconds of decoding (eager, float32, 768x512) of every candidate.

The least of several runs; with one thread CPU time is measured, which other processes disturb less.
python measure_zoo.py [--threads 2]
"""

from __future__ import annotations

import argparse
import json
import time

import torch
from allrates.codecs import CANDIDATES, AllRatesCodec, candidate
from allrates.codecs.base import initialise
from allrates.codecs.macs import kmacs
from torch import Tensor


@torch.inference_mode()
def decode(codec: AllRatesCodec, z_hat: Tensor, y_like: Tensor, q: Tensor) -> Tensor:
    """What a decoder computes, entropy decoding apart."""
    latent = codec.prior(y_like, codec.h_s(z_hat), tables=True)
    return codec.g_s(latent.y_hat * codec.inverse_gain(q))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--runs", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in CANDIDATES:
        codec = candidate(name)
        initialise(codec)
        codec = codec.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        z_hat = torch.randn(1, codec.N, 8, 12).contiguous(memory_format=torch.channels_last)
        y_like = torch.randn(1, codec.M, 32, 48).contiguous(memory_format=torch.channels_last)
        q = torch.tensor([3.0])
        seconds = []
        for _ in range(args.runs + 2):
            start = time.thread_time() if args.threads == 1 else time.perf_counter()
            decode(codec, z_hat, y_like, q)
            end = time.thread_time() if args.threads == 1 else time.perf_counter()
            seconds.append(end - start)
        counts = {k: round(v, 2) for k, v in kmacs(codec).items()}
        record = {
            "candidate": name,
            "parameters": sum(p.numel() for p in codec.parameters()),
            "kmac": counts,
            "decode_ms": round(1000 * min(seconds[2:]), 1),
            "threads": args.threads,
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
