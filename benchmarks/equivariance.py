"""Methods of sequences on a turntable: retrieval of unseen objects, and how predictably features move.

    python benchmarks/equivariance.py turntable_300x18_s48.zip --out DIR --methods simclr coherence
    python benchmarks/equivariance.py turntable_300x18_s48.zip --out DIR --methods egomotion temporal

Methods train on 240 objects x 18 views, by steps, which cost the same in SimCLR and coherence; 60 objects are
held out. Printed for each, beside the same network untrained (with 95 % intervals by object):

- retrieval: four views of each unseen object (90 degrees apart, nearly) are known; for the other 14, is the
  nearest known view, by cosine of the encoder's features, of the same object? Chance 1/60.
- rho [Jayaraman 2015, section 4.2]: mean |z(gx) - M' z(x)| over mean |z(gx) - z(x)| on unseen objects, for
  turns g of +20 and -20 degrees; M' by least squares on the objects trained on. z: the method's own 64
  numbers; of methods without them, the encoder's features. 1: no better than if nothing moved.

Finished runs are not repeated.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tracked import in_batches, interval, method_of, pictures, unpacked, write

import omma
from omma.data.sources.collection import open_images

KNOWN = (0, 4, 9, 13)  # frames of 20 degrees
MODES = ("egomotion", "equiv+drlim", "drlim", "temporal")


def train(table: Path, method: str, steps: int, seed: int, run: Path) -> None:
    """Pretrain; a mode of egomotion is named by itself."""
    options = {}
    if method in MODES:
        options = {"pose": "azimuth", "mode": "equiv" if method == "egomotion" else method}
    omma.pretrain(
        str(table), method="egomotion" if options else method, options=options, model="vitc-15mf",
        image_size=48, steps=steps, seed=seed, out=run,
    )  # fmt: skip


def retrieval(features: Tensor, views: int) -> np.ndarray:
    """Share of correct answers for each object; rows: objects x views."""
    x = torch.nn.functional.normalize(features, dim=-1).unflatten(0, (-1, views))
    asked = [k for k in range(views) if k not in KNOWN]
    known = x[:, list(KNOWN)]
    cosines = torch.einsum("ovd,pkd->ovpk", x[:, asked], known).amax(-1)
    return (cosines.argmax(-1) == torch.arange(len(x))[:, None]).float().mean(1).numpy()


def distances(train: Tensor, test: Tensor, views: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each unseen object: mean |z(gx) - M' z(x)| and mean |z(gx) - z(x)|."""
    train, test = (z.double().unflatten(0, (-1, views)) for z in (train, test))
    first, second = train.flatten(0, 1), train.roll(-turn, 1).flatten(0, 1)
    fitted = torch.linalg.lstsq(first, second, driver="gelsd").solution
    second = test.roll(-turn, 1)
    errors = (second - test @ fitted).norm(dim=-1).mean(1), (second - test).norm(dim=-1).mean(1)
    return errors[0].numpy(), errors[1].numpy()


def rho(train: Tensor, test: Tensor, views: int) -> str:
    """The ratio of means over both turns."""
    errors = np.concatenate([np.stack(distances(train, test, views, turn), axis=1) for turn in (1, -1)])
    objects = np.tile(np.arange(len(errors) // 2), 2)
    return interval(errors, objects, lambda e: e[:, 0].mean() / e[:, 1].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=["simclr", "coherence", *MODES])
    parser.add_argument("--steps", type=int, default=450)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    rows = unpacked(args.data, args.out / "images")
    order = sorted(rows, key=lambda row: (row["sequence"], int(row["frame"])))
    views = len({row["frame"] for row in rows})
    n = 240 * views
    table = write(args.out / "images" / "train.csv", order[:n])
    held_out = write(args.out / "images" / "test.csv", order[n:])
    known, asked = open_images(str(table)), open_images(str(held_out))
    untrained = set()
    for seed in args.seeds:
        for method in args.methods:
            run = args.out / f"{method}-{args.steps}-{seed}"
            if not (run / "model.safetensors").exists():
                train(table, method, args.steps, seed, run)
            seen, unseen = pictures(run, known), pictures(run, asked)
            kind = "z" if method in MODES else "features"
            for trained in [True] if (kind, seed) in untrained else [True, False]:
                net = method_of(run, known, trained, seed)
                encode = lambda x, net=net: net.encoder(x).pooled  # noqa: E731
                features = [in_batches(encode, x) for x in (seen, unseen)]
                z = [net.head(f).detach() for f in features] if kind == "z" else features
                shares = retrieval(features[1], views)
                name = method if trained else f"untrained ({kind})"
                answer = {
                    "method": name, "seed": seed, "steps": args.steps * trained,
                    "retrieval": interval(shares, range(len(shares))), "rho": rho(*z, views),
                }  # fmt: skip
                print(json.dumps(answer), flush=True)
            untrained.add((kind, seed))


if __name__ == "__main__":
    main()
