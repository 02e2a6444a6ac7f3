"""J, bpp and PSNR of exported models on the centre crops of the val split, truly rounded, estimated bits.

python validate_zoo.py --data DATA MODEL.safetensors ... [--pictures 96]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from allrates.train.crops import centre_crops
from allrates.train.loop import VALIDATION_LAMBDAS, load_model, validate_at

from rdquant.files.split import split_files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=96)
    parser.add_argument("--crop", type=int, default=256)
    parser.add_argument("--lambdas", type=float, nargs="*", default=VALIDATION_LAMBDAS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pictures = centre_crops(split_files(args.data, "val"), args.pictures, args.crop, torch.device("cpu"))
    for path in args.models:
        codec = load_model(path).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for lambda_ in args.lambdas:
            print(json.dumps({"model": str(path), **validate_at(codec, pictures, lambda_)}), flush=True)


if __name__ == "__main__":
    main()
