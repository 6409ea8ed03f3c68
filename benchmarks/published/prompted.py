"""CoOp compared with the published code, from a checkpoint in OpenAI's form to the logits."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from published.comparing import Differences, Row, wave
from published.references import References

from omma import weights
from omma.backbones.layers import prompts, text
from omma.data import text_tokenizer

CLASSES = ["cat", "sea_lion", "Yorkshire terrier", "jack-o'-lantern"]
SIZE, OUT, VECTORS = 32, 16, 4


def coop_logits(references: References, differences: Differences) -> None:
    official = references.load("KaiyangZhou/CoOp", "trainers.coop", real=("clip.model", "clip.clip"))
    folder = references.path("KaiyangZhou/CoOp")
    assert folder is not None
    model_code = references.file("KaiyangZhou/CoOp", "clip/model.py")
    torch.manual_seed(0)
    network = model_code.CLIP(OUT, SIZE, 2, 192, 16, 77, 49_408, 128, 2, 2).float().eval()
    network.logit_scale.data.fill_(3.0)
    # OpenAI's files hold these three, too: by them they differ from open_clip's, whose activation is another
    with tempfile.TemporaryDirectory() as place:
        marks = {name: torch.tensor(0) for name in ("input_resolution", "context_length", "vocab_size")}
        torch.save(network.state_dict() | marks, Path(place) / "clip.pt")
        model = weights.load(Path(place) / "clip.pt")
    merges = text_tokenizer.read_merges(folder / "clip" / "bpe_simple_vocab_16e6.txt.gz")
    paired = text.restored(model.extras, "CoOp's", merges)
    images = wave(3, 3, SIZE, SIZE)
    labels = torch.tensor([0, 2, 3])
    for position in prompts.POSITIONS:
        for per_class in (False, True):
            theirs = official.CustomCLIP(_settings(position, per_class), CLASSES, network)
            shape = theirs.prompt_learner.ctx.shape
            start = wave(*shape, scale=0.1)
            theirs.prompt_learner.ctx.data.copy_(start)
            ours = start.clone().requires_grad_()
            slots = prompts.slots(paired, CLASSES, VECTORS, position)
            unit = torch.nn.functional.normalize(model(images).pooled @ paired.projection.T, dim=-1)
            scale = model.extras.tensors["logit_scale"].exp()
            logits = scale * unit @ prompts.features(paired.tower, slots, ours).T
            reference = theirs(images)
            torch.nn.functional.cross_entropy(logits, labels).backward()
            torch.nn.functional.cross_entropy(reference, labels).backward()
            differences.note("loss", logits, reference)
            differences.note("gradient", ours.grad, theirs.prompt_learner.ctx.grad)


def _settings(position: str, per_class: bool) -> Any:
    coop = SimpleNamespace(N_CTX=VECTORS, CTX_INIT="", CSC=per_class, CLASS_TOKEN_POSITION=position)
    return SimpleNamespace(TRAINER=SimpleNamespace(COOP=coop), INPUT=SimpleNamespace(SIZE=(SIZE, SIZE)))


ROWS = [
    Row(
        "coop", "CoOp's logits and its context's gradient: end and middle, shared and by class",
        "KaiyangZhou/CoOp", "trainers.coop.CustomCLIP", coop_logits,
        "both in fp32; the weights are read from a checkpoint in OpenAI's form",
    ),
]  # fmt: skip
