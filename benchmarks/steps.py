"""A complete training step on images in memory: omma, lightly, transformers and timm, taking turns.

    python benchmarks/steps.py dino [--batch 32 64] [--rounds 9] [--json FILE]
    python benchmarks/steps.py all                                   # every method, one table each
    python benchmarks/steps.py dino --model vit-ti/16 --image-size 224 --batch 16
    python benchmarks/steps.py mae --model vit-s/16 --image-size 224 --batch 32
    python benchmarks/steps.py dinov2 --memory --prototypes 131072   # peak memory, a fresh process each
    python benchmarks/steps.py dino --parts                          # where omma's step spends its time

dino, ibot, dinov2: 2 large and 6 small crops (2x32 + 6x16 px, 2x224 + 6x96), heads 2048-2048-256 and K
prototypes (4,096 under 64 px, else 65,536, iBOT's 8,192): student on all crops, teacher on the large ones,
loss, backward, AdamW, moving average, centres; iBOT and DINOv2 with masks, LayerScale and stochastic depth
.1, one head for images and patches (--untied: two). mae: 75 % masked, decoder 2x128 under 64 px, else 8x512.
simclr: two views, head 512-128. moco: two views, one such head, 4,096 keys. supervised: 1,000 classes,
smoothed. All use the same random images and AdamW, without data loading.

omma runs its training loop as in a run (with clipping, schedules, metrics and the check for finite
numbers), in fp32 and in bf16. The others are composed as in their documentation (peers/), in fp32 and under
bf16 autocast: lightly's DINO with one call per crop (its DINO example) and with one call per crop size (its
DINOv2 example); its SimCLR with one call per view (its example) and with one for both; transformers'
ViTMAEForPreTraining with its default and with its eager attention. lightly's MoCo head has no batch norm
where omma's has one, and its SimCLR head ends with one where omma's has none. --references DIR adds the
papers' own code for dino and mae, from clones of facebookresearch/dino and facebookresearch/mae in DIR.

GFLOP: matrix products and convolutions of each contender's step; share: of this machine's best matrix
product in that precision, measured in the same process. --memory: peak memory of the process in three
steps, also relative to that after a tiny step of the same kind (Python and its libraries); on a GPU, the
memory allocated there.
"""

import argparse
import functools
import gc
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import ours
import torch
from common import Contender
from peers import lightly_, timm_, transformers_
from setting import METHODS, Decoder, Setting

from omma.cli.live import profile_lines
from omma.core import device as machine
from omma.train.profile import STEPS, WARM_UPS, Profile, Profiler

STEPS_OF_MEMORY = 3


def subjects(s: Setting) -> list[Callable[[], Contender]]:
    """Functions that build the contenders."""
    peers: dict[str, list[Callable[..., Contender]]] = {
        "dino": [functools.partial(lightly_.dino, per_size=per_size) for per_size in (False, True)],
        "ibot": [lightly_.ibot],
        "dinov2": [lightly_.dinov2],
        "mae": [lightly_.mae]
        + [functools.partial(transformers_.mae, attention=how) for how in ("sdpa", "eager")],
        "simclr": [functools.partial(lightly_.simclr, joined=joined) for joined in (False, True)],
        "moco": [lightly_.moco],
        "supervised": [timm_.supervised],
    }
    if s.references is not None:
        from peers import official_  # which takes timm and torchvision into memory

        published = {"dino": official_.dino, "mae": official_.mae}
        peers[s.method] += [published[s.method]] if s.method in published else []
    return [
        functools.partial(build, s, bf16=bf16)
        for build in (ours.contender, *peers[s.method])
        for bf16 in (True, False)
    ]


def race(s: Setting, rounds: int) -> dict[str, Any]:
    """Measure speeds in turns, and their share of the machine's limit."""
    contenders = [build() for build in subjects(s)]
    seconds = common.take_turns(contenders, rounds, device=s.device)
    result = common.summary(contenders, seconds)
    common.add_work(result, contenders, s.device)
    common.show(s.describe(), result, rounds)
    return result


# ---------------------------------------------------------------- memory
def memory_of(s: Setting, number: int) -> dict[str, Any]:
    """Peak memory of this process in bytes: with libraries before a contender is built, and after steps."""
    machine.keep_memory()
    tiny = replace(s, model="vit-n/4", image_size=32, batch=2, local_crops=0, prototypes=8, queue=8)
    subjects(tiny)[number]().run()
    gc.collect()
    before = machine.peak_memory(s.device)
    contender = subjects(s)[number]()
    for _ in range(STEPS_OF_MEMORY):
        contender.run()
    machine.synchronise(s.device)
    return {"name": contender.name, "ours": contender.ours, "before": before,
            "peak": machine.peak_memory(s.device)}  # fmt: skip


def memory(s: Setting) -> dict[str, Any]:
    """Each contender in a fresh process; compares the best of both sides."""
    print(f"{s.describe()}: peak memory\n{common.headline()}")
    print(f"{'MiB':38}{'at most':>9}{'more':>9}   than after a tiny step")
    results = []
    for number in range(len(subjects(s))):
        command = [sys.executable, __file__, *arguments_of(s), "--subject", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"subject {number} of {s.method}: {done.stderr.strip()[-2000:]}")
        one = json.loads(done.stdout.splitlines()[-1])
        one["more"] = one["peak"] - one["before"]
        results.append(one)
        print(f"{one['name']:38}{one['peak'] / 2**20:9,.0f}{one['more'] / 2**20:9,.0f}")
    ratios = {
        kind: min(one[kind] for one in results if one["ours"])
        / min(one[kind] for one in results if not one["ours"])
        for kind in ("peak", "more")
    }
    print(
        f"omma / best peer: {ratios['peak']:.2f} of whole processes, {ratios['more']:.2f} of what is more\n"
    )
    return {"memory": results, "ratios": ratios}


# ---------------------------------------------------------------- parts
def parts(s: Setting, bf16: bool, steps: int = STEPS) -> Profile:
    """The profile of omma's step."""
    contenders: list[Profiler] = []

    def watch(method: Any) -> Profiler:
        contenders.append(Profiler(method, s.device, torch.bfloat16 if bf16 else torch.float32))
        return contenders[0]

    machine.keep_memory()
    loop = ours.steps(s, bf16, watch)
    for _ in range(WARM_UPS + steps):
        next(loop)
    contenders[0].close()
    results = contenders[0].pop_profile(s.batch)
    assert results is not None
    return results


def show_parts(s: Setting) -> dict[str, Any]:
    print(f"{s.describe()}: parts of omma's step\n{common.headline()}")
    results = {common.contender_name("omma", bf16): parts(s, bf16) for bf16 in (True, False)}
    for name, profile in results.items():
        print("\n".join([name, *profile_lines(profile)]) + "\n")
    return {name: profile.record() for name, profile in results.items()}


# ---------------------------------------------------------------- the command
def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("method", nargs="+", choices=(*METHODS, "all"))
    parser.add_argument("--model", default="vit-ti/4", help="vit-SIZE/PATCH")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch", type=int, nargs="+", default=[32], help="images a step, a table each")
    parser.add_argument("--prototypes", type=int)
    parser.add_argument("--untied", action="store_true", help="DINOv2 with two heads")
    parser.add_argument("--local-crops", type=int, default=6)
    parser.add_argument("--decoder", type=int, nargs=3, metavar=("DEPTH", "DIM", "HEADS"), help="MAE's")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--references", type=Path, metavar="DIR", help="clones of the papers' own code")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", action="store_true", help="peak memory in place of speed")
    parser.add_argument("--parts", action="store_true", help="parts of omma's step in place of a race")
    parser.add_argument("--subject", type=int, help="(for --memory: the one that this process is for)")
    parser.add_argument("--json", type=Path)
    return parser


def settings(args: argparse.Namespace) -> list[Setting]:
    """The settings of each table."""
    requested = METHODS if "all" in args.method else args.method
    return [
        Setting(
            method=method,
            model=args.model,
            image_size=args.image_size,
            batch=batch,
            local_crops=args.local_crops,
            prototypes=args.prototypes,
            untied=args.untied,
            references=args.references,
            decoder=None if args.decoder is None else Decoder(*args.decoder),
            device=torch.device(args.device),
        )
        for method in requested
        for batch in args.batch
    ]


def arguments_of(s: Setting) -> list[str]:
    """Command-line arguments with which another process builds this setting."""
    words = [s.method, "--model", s.model, "--image-size", str(s.image_size), "--batch", str(s.batch)]
    words += ["--local-crops", str(s.local_crops), "--device", str(s.device)]
    words += ["--untied"] * s.untied
    words += [] if s.references is None else ["--references", str(s.references)]
    words += [] if s.prototypes is None else ["--prototypes", str(s.prototypes)]
    return words + ([] if s.decoder is None else ["--decoder", *map(str, s.decoder)])


def main() -> None:
    args = arguments().parse_args()
    if args.subject is not None:
        (s,) = settings(args)
        print(json.dumps(memory_of(s, args.subject)))
        return
    measure = (
        memory if args.memory else show_parts if args.parts else functools.partial(race, rounds=args.rounds)
    )
    results = [
        {"method": s.method, "setting": s.describe(), "batch": s.batch, **measure(s)} for s in settings(args)
    ]
    common.save(args.json, "steps", __doc__, results)


if __name__ == "__main__":
    main()
