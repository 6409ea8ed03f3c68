"""Each `paper` recipe's numbers beside those that the published script computes from its own arguments.

    python benchmarks/recipes.py --references DIR [--write]

DIR holds a clone of each repository, named `owner+name` or `name`. The published numbers are computed by the
scripts' own parsers, configurations and schedules (published/scripts.py), omma's as a run's plan takes them:
for the published batch and length, and for two others. Numbers that differ are marked, with the reason beside
them; the command fails for a difference without one. --write puts the table into docs/recipes.md.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from published.references import References
from published.script_runs import SCRIPTS
from published.scripts import Script, rates
from tables import write_between

from omma import backbones, methods
from omma.core.protocols import Clock, Recipe
from omma.methods.shared.self_distillation import SelfDistillation, teacher_temperature
from omma.train.loop import Position
from omma.train.schedules import learning_rate

DOCUMENT = Path(__file__).parent.parent / "docs" / "recipes.md"
BEGIN, END = (f"<!-- benchmarks/recipes.py {word} -->" for word in ("begin", "end"))
OTHERS = ((256, 800), (64, 300))  # batch, epochs
WARMUP = "steps of warm-up"
LAST = "an epoch of theirs leaves out the last, smaller batch"  # explains a step for each epoch
VIEWS = "omma's batch is of images, three views of each: 1,008, 255 and 63 views"
DROPS = "the script drops the rate after epoch 700 of any run, omma after 7/8 of the run"
UNKNOWN = "no rule for another batch is published: the rate changes with its root"
RATES = ("rate: first step", "rate: half the warm-up", "rate: peak", "rate: half the run")
# (script, what differs): why
EXPLAINED = {
    ("SimMIM ViT-B/16", "rate: last step"): DROPS,
    ("SimMIM Swin-B", "rate: last step"): DROPS,
    ("SimCLR ResNet-50", "weight decay: first, last"): "the paper's, and the script's default",
    ("DeiT-B distilled", WARMUP): VIEWS,
    **{("DeiT-B distilled", rate): VIEWS for rate in RATES},
    **{("CLIP ViT-B/32", rate): UNKNOWN for rate in RATES},
}


# ---------------------------------------------------------------- omma's numbers
def recipe_of(script: Script, batch: int) -> Recipe:
    """The recipe as `omma pretrain --recipe paper --batch-size N` takes it; batch: views of images."""
    file = methods.get(script.method)
    recipe = file.paper(script.size, script.model)
    config = dataclasses.replace(recipe.config, **script.options)
    recipe = file.adapted(dataclasses.replace(recipe, config=config), backbones.options(script.model))
    views = getattr(recipe.config, "repeats", 1)
    return recipe if batch == script.batch else recipe.for_batch(batch // views)


def ours(script: Script, batch: int, epochs: int) -> dict[str, Any]:
    """The numbers of the recipe in a run of so many epochs."""
    recipe = recipe_of(script, batch)
    place = Position.of(recipe, script.images)
    passes = epochs * recipe.epoch_passes
    place.total = epochs * (recipe.epoch_steps or 0) or math.ceil(passes * script.images / recipe.batch)

    def clock(step: int) -> Clock:
        return dataclasses.replace(place, step=step).clock()

    per_epoch = clock(0).steps(1)
    rate = rates(
        lambda step: learning_rate(clock(step), recipe), place.total, recipe.warmup_steps(clock(0)), per_epoch
    )
    decay = recipe.weight_decay, recipe.weight_decay_end
    facts = {
        "weight decay: first, last": (decay[0], decay[0] if decay[1] is None else decay[1]),
        "betas": recipe.betas,
        "clip": (recipe.clip, recipe.clip_by if recipe.clip is not None else "all"),
        "stochastic depth": recipe.drop_path,
        "optimizer": recipe.optimizer,
        "momentum": recipe.betas[0],
    }
    c = recipe.config
    network = {**backbones.options(script.model), **recipe.encoder}
    if isinstance(c, SelfDistillation):
        facts |= {
            f"temperature: epoch {e}": teacher_temperature(
                c, clock(math.ceil(e * place.total / clock(0).epochs))
            )
            for e in (0, 10, 29, 80, 100)
        }
        facts |= {
            "teacher's momentum: first": c.momentum,
            "epochs of a frozen last layer": c.freeze_last_epochs,
            "prototypes": c.prototypes,
            "prototypes' lengths are learned": c.prototype_gain,
            "crops: global": c.global_scale,
            "crops: local": (c.local_crops, *c.local_scale),
            "centring": c.centring,
            "bottleneck: images": c.head_bottleneck,
        }
    return rate | facts | OWN.get(script.method, lambda *_: {})(c, network)


def _dinov2(c: Any, network: dict[str, Any]) -> dict[str, Any]:
    return {
        "bottleneck: patches": (c.patch_head_bottleneck or c.head_bottleneck) if c.untied else None,
        "network": network["mlp"] if network["mlp"] == "swiglu" else "mlp",
        "rates by layer": c.layer_decay, "rate of the patch embedding": c.patch_embed_lr, "KoLeo": c.koleo,
    }  # fmt: skip


def _mae(c: Any, network: dict[str, Any]) -> dict[str, Any]:
    size = c.decoder_size()
    return {
        "mask": c.mask_share, "normalised pixels": c.normalise_target, "decoder: width": size.dim,
        "decoder: depth": size.depth, "decoder: heads": size.heads, "crops: global": c.scale,
    }  # fmt: skip


def _moco(c: Any, network: dict[str, Any]) -> dict[str, Any]:
    return {
        "teacher's momentum: first": c.momentum, "temperature": c.temperature,
        "head: hidden, out": (c.hidden, c.out), "heads of attention": network["heads"],
        "patch embedding is frozen": c.freeze_patch_embed, "crops: global": c.scale,
    }  # fmt: skip


def _simmim(c: Any, network: dict[str, Any]) -> dict[str, Any]:
    return {
        "mask": c.mask_share, "mask: pixels of a unit": c.unit, "crops: global": c.scale,
        "network": network.get("window", network.get("bias") == "shared"),
    }  # fmt: skip


def _beit(c: Any, network: dict[str, Any]) -> dict[str, Any]:
    return {"mask": c.mask_share, "LayerScale": network["layer_scale"] or 0.0, "crops: global": c.scale}


def _simclr(c: Any, network: dict[str, Any]) -> dict[str, Any]:
    return {
        "temperature": c.temperature, "head: layers, out": (c.layers, c.out), "colour": c.colour,
        "crops: global": c.scale,
    }  # fmt: skip


def _deit(c: Any, network: dict[str, Any]) -> dict[str, Any]:
    return {
        "smoothing, mixup, cutmix": (c.smoothing, c.mixup, c.cutmix), "erasing": c.erase_p,
        "views of each image": c.repeats,
    }  # fmt: skip


OWN: dict[str, Callable[[Any, dict[str, Any]], dict[str, Any]]] = {
    "dinov2": _dinov2, "mae": _mae, "moco": _moco, "simmim": _simmim, "beit": _beit, "eva": _beit,
    "simclr": _simclr, "deit": _deit,
}  # fmt: skip


# ---------------------------------------------------------------- the table
def same(a: Any, b: Any, unit: float = 0.0) -> bool:
    """Equal to 1 in 1,000; unit: of which a millionth does not count."""
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(same(x, y, unit) for x, y in zip(a, b, strict=True))
    if isinstance(a, bool | str) or a is None or isinstance(b, str) or b is None:
        return a == b
    return abs(a - b) <= 1e-3 * max(abs(a), abs(b)) + 1e-6 * unit


def written(value: Any) -> str:
    if isinstance(value, tuple | list):
        return ", ".join(map(written, value))
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) else value if isinstance(value, str) else f"{value:.3g}"


def compared(script: Script, clone: Path) -> tuple[list[str], list[str]]:
    """The script's lines of the table, and its differences without a reason."""
    runs = [(script.batch, script.epochs), *OTHERS]
    both = [(ours(script, *run), script.numbers(clone, script.command.split(), *run)) for run in runs]
    lines, bare = [], []
    for what in both[0][1]:
        cells, why = [], ""
        for (batch, _), (own, theirs) in zip(runs, both, strict=True):
            a, b = own[what], theirs[what]
            if same(a, b, theirs["rate: peak"] if what.startswith("rate") else 0.0):
                cells.append(written(b))
                continue
            cells.append(f"**{written(a)}** ({written(b)})")
            by_epoch = what == WARMUP and abs(a - b) <= 1 + b * batch / script.images
            why = EXPLAINED.get((script.name, what)) or (LAST if by_epoch else "")
            if not why:
                bare.append(f"{script.name}, {what}: {cells[-1]}")
        cells = cells[:1] if len(set(cells)) == 1 else cells
        cells += [""] * (len(runs) - len(cells))
        lines.append(f"| {script.name} | {what} | {' | '.join(cells)} | {why} |")
    return lines, bare


def commands() -> list[str]:
    """Where each command is from."""
    return [
        f"- {s.name}: batch {s.batch:,}, {s.epochs} epochs; {s.folder}, {s.where}"
        + (f": `{s.command}`" if s.command else "")
        for s in SCRIPTS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--references", type=Path, required=True, metavar="DIR")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    references = References(args.references)
    lacking = sorted({script.folder for script in SCRIPTS if references.path(script.folder) is None})
    if lacking:
        sys.exit("\n".join(f"{name} is missing: git clone https://github.com/{name}" for name in lacking))
    heads = [f"batch {batch}, {epochs} epochs" for batch, epochs in OTHERS]
    lines = [
        f"| script | number | as published | {' | '.join(heads)} | why it differs |",
        "|---|---|---|---|---|---|",
    ]
    bare = []
    for script in SCRIPTS:
        clone = references.path(script.folder)
        assert clone is not None
        rows, without = compared(script, clone)
        print(*rows, sep="\n", flush=True)
        lines += rows
        bare += without
    if args.write:
        table = [*lines, "", "The published commands:", "", *commands()]
        write_between(DOCUMENT, BEGIN, END, table)
    if bare:
        sys.exit("\n".join(["", "differences without a reason:", *bare]))


if __name__ == "__main__":
    main()
