"""Commands that train: `omma pretrain`, and `omma demo`, which judges too."""

from typing import Any

from rich.console import Console

from omma.cli.judge import evaluate
from omma.cli.live import Listener, end
from omma.cli.shared import Auto, Dotted, Path_
from omma.core import launcher

SIZES = ("image_size", "batch_size", "accumulate", "lr", "workers")  # numbers that may be "auto"


def pretrain(
    images: Path_,
    method: str = "auto",
    model: str = "auto",
    init: str | None = None,
    allow_partial: bool = False,
    head_warmup: float | None = None,
    encoder_lr_scale: float | None = None,
    out: str | None = None,
    budget: str | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    image_size: int | Auto = "auto",
    batch_size: int | Auto = "auto",
    accumulate: int | Auto = "auto",
    recompute: bool = False,
    compile: str = "auto",
    lr: float | Auto = "auto",
    recipe: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    shard: str = "auto",
    seed: int = 0,
    workers: int | Auto = "auto",
    cache: bool = False,
    decode: str = "cpu",
    checkpoint_every: float = 300.0,
    profile: bool = False,
    options: Dotted = None,
    model_options: Dotted = None,
) -> int:
    """Pretrain an encoder on images without labels.

    The same command again resumes a run that was stopped. A method's own options are set with
    --method.KEY VALUE, a backbone's with --model.KEY VALUE; `omma methods NAME` and `omma models NAME` list
    them.

    Args:
        images: Folder, glob, .zip, .tar, shards, manifest (.csv .parquet .jsonl), .npz, .npy or IDX .gz.
        method: Pretraining method; `omma methods` lists them.
        model: Backbone; `omma models` lists them.
        init: Weights to go on from: a run folder, a weights file, timm:NAME or hf:NAME.
        allow_partial: With --init, take weights that lack many of the network's parameters too.
        head_warmup: With --init, share of the run in which the encoder is frozen.
        encoder_lr_scale: With --init, the encoder's learning rate as a share of the heads'.
        out: Run folder; by default runs/ and a name made of images, method and model.
        budget: Time to end at, such as 90s, 10m or 2h; 30m where no end is given.
        epochs: Passes over the images.
        steps: Optimizer steps.
        image_size: Pixels along a side that the network sees.
        batch_size: Images a step.
        accumulate: Parts that a step is computed in, to save memory; auto: as few as fit.
        recompute: Compute activations anew in the backward pass, to save memory; a third more work.
        compile: on or off: a transformer's blocks by torch.compile; auto: on GPUs, in long runs, if faster.
        lr: Peak learning rate.
        recipe: small or paper.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        shard: none or fsdp: a copy of the network on each process, or its blocks spread over all.
        seed: Of everything random.
        workers: Processes that decode images.
        cache: Keep images decoded and resized on disk; their size is told before they are written.
        decode: cpu or gpu: who decodes JPEGs; gpu needs one of NVIDIA's and the package torchcodec.
        checkpoint_every: Seconds between checkpoints.
        profile: Print what the parts of a step take, and what share of the machine's limit is reached.
    """
    given: dict[str, Any] = {k: None if v == "auto" and k in SIZES else v for k, v in locals().items()}
    from omma.core.device import keep_memory, share_cores
    from omma.verbs.pretrain import pretrain as verb

    keep_memory()
    share_cores()
    first = launcher.ranks().rank == 0  # of several processes one speaks
    with Listener(Console(highlight=False, soft_wrap=True, quiet=not first)) as listener:
        result = verb(**given, listen=listener)
    if first:
        end(result)
    return 0 if result.stopped_by is None else 128 + result.stopped_by


def demo(budget: str = "150s", out: str = "runs/demo", seed: int = 0) -> int:
    """The main job on embedded data: pretrain, evaluate, report, in under four minutes.

    Real handwritten digits at random places on textures of photographs, 32 px: what they show can only be
    told by their shape.

    Args:
        budget: Time for pretraining.
        out: Run folder.
        seed: Of data and training.
    """
    from omma.verbs import demo as verb

    data = str(verb.images(out, seed))
    flags = " ".join(f"--method.{key} {value}" for key, value in verb.OPTIONS.items())
    Console().print(
        f"$ omma pretrain {data} --out {out} --budget {budget} --method {verb.METHOD} {flags}", style="bold"
    )
    code = pretrain(data, method=verb.METHOD, out=out, budget=budget, seed=seed, options=verb.OPTIONS)
    if code:
        return code
    Console().print(f"\n$ omma evaluate {out} {data}", style="bold")
    return evaluate(out, data, seed=seed)
