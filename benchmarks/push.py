"""What `interaction` learns of pushes: where they began and ended, on objects that it never saw.

    python benchmarks/push.py pushes_1600_s96.zip --out DIR --steps 1000 --seeds 0 1 2

A fifth of the objects are held out, with all their pushes. Printed with 95 % intervals by object, of the
pictures before and after each push: R2 of both ends (mean over their two coordinates; predicting the mean
gives 0), and the median error of the direction (chance 90 degrees). The same with the picture after another
push in place of its own, which must be far worse; and of the network as it is built. Finished runs are not
repeated.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tracked import by_group, in_batches, interval, method_of, pictures, unpacked, write

import omma
from omma.data.sources.collection import open_images

ENDS = ("push_x0", "push_y0", "push_x1", "push_y1")


def r2(both: np.ndarray) -> float:
    """Of predictions and truths side by side [n, 2, d], the mean over d of 1 - squared error / variance."""
    predicted, truth = both[:, 0], both[:, 1]
    return float((1 - ((predicted - truth) ** 2).mean(0) / truth.var(0)).mean())


def angle(ends: np.ndarray) -> np.ndarray:
    """Directions of pushes in degrees."""
    return np.degrees(np.arctan2(ends[:, 3] - ends[:, 1], ends[:, 2] - ends[:, 0]))


def scores(predicted: np.ndarray, truth: np.ndarray, objects: list[str]) -> dict[str, str]:
    """R2 of both ends, and the median error of the direction."""
    error = np.abs((angle(predicted) - angle(truth) + 180) % 360 - 180)
    both = np.stack([predicted, truth], axis=1)
    return {
        "r2_start": interval(both[..., :2], objects, r2),
        "r2_end": interval(both[..., 2:], objects, r2),
        "median_angle_error": interval(error, objects, np.median),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    folder = args.out / "images"
    parts = by_group(unpacked(args.data, folder), "object", 0.2)
    train, test = (write(folder / f"{k}.csv", part) for k, part in zip(("train", "test"), parts, strict=True))
    rows = parts[1]
    truth = np.array([[float(row[name]) for name in ENDS] for row in rows if row["frame"] == "0"])
    objects = [row["object"] for row in rows if row["frame"] == "0"]
    assert [row["frame"] for row in rows] == ["0", "1"] * len(truth)
    for seed in args.seeds:
        run = args.out / f"push-{args.steps}-{seed}"
        if not (run / "model.safetensors").exists():
            options = {"method": "interaction", "model": "vitc-15mf", "image_size": 96}
            omma.pretrain(str(train), steps=args.steps, seed=seed, out=run, **options)
        x = pictures(run, open_images(str(test))).unflatten(0, (-1, 2))
        other = torch.stack([x[:, 0], x[:, 1].roll(1, 0)], dim=1)
        for trained, shown, what in (
            (False, x, "untrained"),
            (True, x, "trained"),
            (True, other, "other after"),
        ):
            net = method_of(run, open_images(str(train)), trained, seed)

            def predict(x: torch.Tensor, net=net) -> torch.Tensor:
                y = net.heads(net.encoder(x.flatten(0, 1)), 2)["push"]
                return net.heads.numbers("push", y)

            answer = scores(in_batches(predict, shown).numpy(), truth, objects)
            print(json.dumps({"seed": seed, "what": what, "pushes": len(truth), **answer}), flush=True)


if __name__ == "__main__":
    main()
