"""A step of fine-tuning with each adapter: time, memory, trained parameters, beside peft's LoRA.

    python benchmarks/adapters.py                                   # vit-s/16, 224 px, batch 16
    python benchmarks/adapters.py --model vit-ti/16 --rounds 7 --json FILE
    python benchmarks/adapters.py --memory                          # peak memory, a fresh process each

omma's `finetune` step (smoothed cross-entropy, 100 classes) with head alone, bias, lora (rank 8 on all linear
layers of the blocks), vpt (10 prompts a layer), adapter (width 64) and full, in omma's training loop as in a
run, in fp32 and bf16. The peers are peft's LoRA of the same rank on the same layers of timm's and of
transformers' network of the same shape, with a linear head and AdamW, in fp32 and under bf16 autocast. All
see the same random images, without data loading; all encode images in training, head alone too (omma's
command caches its features).
"""

import argparse
import gc
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from common import Contender, contender_name
from peers import stepper, timm_
from setting import Setting
from torch import nn

from omma import backbones
from omma.backbones import adapters
from omma.core import device as machine
from omma.core.protocols import Batch, Context, Key
from omma.methods import finetune
from omma.train.loop import Position, train
from omma.train.optimizer import make_optimizer

WAYS = ("head", "bias", "lora", "vpt", "adapter", "full")
CLASSES, RANK, ALPHA = 100, 8, 16
LAYERS = ["qkv", "attn.proj", "fc1", "fc2"]  # timm's names
HF_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]  # transformers 5
STEPS_OF_MEMORY = 3


def trained(module: nn.Module) -> int:
    """Parameters that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def ours(s: Setting, way: str, bf16: bool) -> tuple[Contender, int]:
    """omma's step, and how many parameters it trains."""
    torch.manual_seed(0)
    encoder = backbones.build(name=s.model, image_size=s.image_size)
    if way == "head":
        encoder.requires_grad_(False)
    elif way != "full":
        adapters.insert(encoder, way)
    recipe = finetune.small(s.image_size, s.model)
    recipe = replace(recipe, config=replace(recipe.config, head_warmup=0.0), batch=s.batch)
    given = Context(image_size=s.image_size, images=50_000, classes=tuple(map(str, range(CLASSES))))
    method = finetune.Method(encoder, recipe.config, given)
    key = Key(0, np.zeros(s.batch, np.int64), np.arange(s.batch))
    batch = Batch((s.crops()[0][:, None],), key, s.labels())
    loop = train(
        method,
        make_optimizer(method, recipe),
        itertools.repeat(batch),
        recipe,
        Position(0, 1_000_000, s.batch, 50_000),
        dtype=torch.bfloat16 if bf16 else torch.float32,
    )
    name = contender_name("omma", bf16, way)
    return Contender(name, lambda: next(loop), s.batch, ours=True, bf16=bf16), trained(method)


def peft_timm(s: Setting, bf16: bool) -> tuple[Contender, int]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LAYERS, modules_to_save=["head"])
    return _peft(s, bf16, get_peft_model(timm_.vit(s, CLASSES), config), lambda out: out, "timm")


def peft_transformers(s: Setting, bf16: bool) -> tuple[Contender, int]:
    from peft import LoraConfig, get_peft_model
    from transformers import ViTConfig, ViTForImageClassification

    shape = s.shape
    config = ViTConfig(
        hidden_size=shape.dim,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=int(shape.ratio * shape.dim),
        image_size=s.image_size,
        patch_size=s.patch,
        num_labels=CLASSES,
    )
    lora = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=HF_LAYERS, modules_to_save=["classifier"])
    network = get_peft_model(ViTForImageClassification(config), lora)
    return _peft(s, bf16, network, lambda out: out.logits, "transformers")


def _peft(
    s: Setting, bf16: bool, network: nn.Module, logits: Callable[[Any], torch.Tensor], library: str
) -> tuple[Contender, int]:
    (images,), labels = s.crops(), s.labels()
    loss = nn.CrossEntropyLoss(label_smoothing=0.1)
    learns = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=s.lr, weight_decay=0.05)
    step = stepper(s, bf16, lambda: loss(logits(network.train()(images)), labels), optimizer)
    name = contender_name("peft", bf16, f"lora, {library}")
    return Contender(name, step, s.batch, bf16=bf16), trained(network)


def subjects(s: Setting, ways: Sequence[str] = WAYS) -> list[Callable[[], tuple[Contender, int]]]:
    """Functions that build the contenders."""
    made: list[Callable[[], tuple[Contender, int]]] = []
    for bf16 in (True, False):
        made += [lambda way=way, bf16=bf16: ours(s, way, bf16) for way in ways]
        made += [lambda peer=peer, bf16=bf16: peer(s, bf16) for peer in (peft_timm, peft_transformers)]
    return made


def race(s: Setting, rounds: int, ways: Sequence[str]) -> dict[str, Any]:
    """Seconds a step in turns, and the ratio to omma's LoRA in the same precision, by round."""
    made = [build() for build in subjects(s, ways)]
    seconds = common.take_turns([contender for contender, _ in made], rounds)
    print(f"{s.model}, {s.image_size} px, batch {s.batch}, {rounds} rounds in turn\n{common.headline()}")
    print(f"{'':30}{'ms a step':>10}{'to':>8}{'/ omma lora':>13}{'trained':>12}")
    rows = []
    for contender, parameters in made:
        times = seconds[contender.name]
        lora = seconds[contender_name("omma", contender.bf16, "lora")]
        ratios = [a / b for a, b in zip(times, lora, strict=True)]
        rows.append({"name": contender.name, "seconds": times, "ratios": ratios, "trained": parameters})
        print(
            f"{contender.name:30}{1e3 * statistics.median(times):10.0f}{1e3 * max(times):8.0f}"
            f"{statistics.median(ratios):13.2f}{parameters:12,d}"
        )
    return {"rows": rows}


def memory_of(s: Setting, number: int, ways: Sequence[str]) -> dict[str, Any]:
    """Peak memory of this process in bytes: after a tiny step of the same kind, and after steps."""
    machine.keep_memory()
    subjects(replace(s, model="vit-n/4", image_size=32, batch=2), ways)[number]()[0].run()
    gc.collect()
    before = machine.peak_memory(s.device)
    contender, _ = subjects(s, ways)[number]()
    for _ in range(STEPS_OF_MEMORY):
        contender.run()
    return {"name": contender.name, "before": before, "peak": machine.peak_memory(s.device)}


def memory(s: Setting, ways: Sequence[str]) -> dict[str, Any]:
    """Each contender in a fresh process."""
    print(f"{s.model}, {s.image_size} px, batch {s.batch}: peak memory\n{common.headline()}")
    print(f"{'MiB':30}{'at most':>9}{'more':>9}   than after a tiny step")
    rows = []
    for number in range(len(subjects(s, ways))):
        words = ["--model", s.model, "--image-size", str(s.image_size), "--batch", str(s.batch)]
        words += ["--ways", *ways]
        command = [sys.executable, __file__, *words, "--subject", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"subject {number}: {done.stderr.strip()[-2000:]}")
        one = json.loads(done.stdout.splitlines()[-1])
        rows.append({**one, "more": one["peak"] - one["before"]})
        print(f"{one['name']:30}{one['peak'] / 2**20:9,.0f}{rows[-1]['more'] / 2**20:9,.0f}", flush=True)
    return {"memory": rows}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="vit-s/16", help="vit-SIZE/PATCH")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--ways", nargs="+", default=list(WAYS), help="of omma; lora is what others are compared to"
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", action="store_true", help="peak memory in place of speed")
    parser.add_argument("--subject", type=int, help="(for --memory: the one that this process is for)")
    parser.add_argument("--json", type=Path)
    return parser


def main() -> None:
    args = arguments().parse_args()
    s = Setting(
        method="supervised", model=args.model, image_size=args.image_size, batch=args.batch, classes=CLASSES
    )
    if args.subject is not None:
        print(json.dumps(memory_of(s, args.subject, args.ways)))
        return
    result = memory(s, args.ways) if args.memory else race(s, args.rounds, args.ways)
    common.save(
        args.json, "adapters", __doc__, [{"setting": f"{s.model} {s.image_size} {s.batch}", **result}]
    )


if __name__ == "__main__":
    main()
