"""MoCo, SimCLR, DeiT, CLIP and LeJEPA compared with the published code: add a function here and to ROWS."""

import copy
import random
from pathlib import Path

import torch
import torch.distributed
import torch.nn.functional as F
from published.comparing import (
    IMAGE,
    IMAGES,
    RATE,
    STEPS,
    Differences,
    Row,
    batch,
    descend,
    double,
    leaf,
    made,
    wave,
)
from published.references import References
from torch import Tensor, nn

from omma.core.protocols import Clock
from omma.data import text_tokenizer
from omma.losses import classification, contrastive
from omma.methods import lejepa, moco


def moco_method(references: References, differences: Differences) -> None:
    official = references.load("facebookresearch/moco-v3", "moco.builder")
    config = moco.Config(hidden=24, out=8, momentum=0.9, freeze_patch_embed=False)
    method = made(moco, config)

    class Base(nn.Module):
        """omma's encoder with a head, in the form that the published code expects."""

        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.net = copy.deepcopy(method.encoder)
            self.head = nn.Linear(16, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.net(x).pooled)

    theirs = official.MoCo_ViT(Base, 8, 24, config.temperature)
    theirs.base_encoder.head.load_state_dict(method.head.state_dict())
    theirs.predictor.load_state_dict(method.predictor.state_dict())
    theirs.momentum_encoder.load_state_dict(theirs.base_encoder.state_dict())
    theirs.double()
    # the two start alike, for the published code moves the average before a step and ours after it
    method.key_encoder.load_state_dict(method.encoder.state_dict())
    method.key_head.load_state_dict(method.head.state_dict())
    momentum = 1.0
    for step in range(STEPS):
        # batch norms of a few images would blow rounding errors up
        data = batch(step, (1, IMAGE), (1, IMAGE), images=16 * IMAGES)
        ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        loss = theirs(*double(data.views), momentum)
        loss.backward()
        differences.note("loss", ours.loss, loss)
        differences.gradients(method.encoder, theirs.base_encoder.net)
        differences.gradients(method.head, theirs.base_encoder.head)
        differences.gradients(method.predictor, theirs.predictor)
        differences.states(method.key_encoder, theirs.momentum_encoder.net)
        differences.states(method.key_head, theirs.momentum_encoder.head)  # with its batch norms' statistics
        differences.states(method.head, theirs.base_encoder.head)
        descend(method, theirs, rate=RATE / 10)
        momentum = moco.cosine(config.momentum, config.momentum_end, (step + 1) / STEPS)
        method.after_step(Clock(step + 1, STEPS, 0.0), [ours.carry])
    theirs._update_momentum_encoder(momentum)
    differences.states(method.key_encoder, theirs.momentum_encoder.net)


def simclr_loss(references: References, differences: Differences) -> None:
    official = references.load("google-research/simclr", "tf2.objective")
    for step in range(STEPS):
        x, twin = leaf(wave(10, 8, phase=step))
        ours = contrastive.ntxent(x.chunk(2), 0.1 * (step + 1))
        theirs = official.add_contrastive_loss(twin, temperature=0.1 * (step + 1))[0] / 2
        ours.backward()
        theirs.backward()
        differences.note("loss", ours, theirs)
        differences.note("gradient", x.grad, twin.grad)


def lightlys_loss(references: References, differences: Differences) -> None:
    from lightly.loss import NTXentLoss

    for step in range(STEPS):
        x, twin = leaf(wave(10, 8, phase=step))
        ours = contrastive.ntxent(x.chunk(2), 0.1 * (step + 1))
        theirs = NTXentLoss(0.1 * (step + 1))(*twin.chunk(2))
        ours.backward()
        theirs.backward()
        differences.note("loss", ours, theirs)
        differences.note("gradient", x.grad, twin.grad)


def lejepa_statistic(references: References, differences: Differences) -> None:
    official = references.load("rbalestr-lab/lejepa", "lejepa.univariate.epps_pulley")
    official = official.EppsPulley().double()
    for step in range(STEPS):
        x, twin = leaf(wave(2, 6, 5, phase=step))
        directions = F.normalize(wave(5, 7, phase=step + 0.3), dim=0)
        ours, theirs = lejepa.sigreg(x, directions), official(twin @ directions.double()).mean()
        ours.backward()
        theirs.backward()
        differences.note("loss", ours, theirs)
        differences.note("gradient", x.grad, twin.grad)


def deit_losses(references: References, differences: Differences) -> None:
    official = references.file("facebookresearch/deit", "losses.py")
    rows, classes = 6, 5
    targets = wave(rows, classes, phase=2.0).softmax(-1)
    weights, count = torch.ones(rows), torch.tensor(float(rows))
    for kind, share in (("hard", 0.5), ("soft", 0.1)):
        teacher = wave(rows, classes, phase=1.0, scale=3.0)
        (own, own_twin), (reported, told_twin) = (leaf(wave(rows, classes, phase=p)) for p in (0.3, 0.6))
        base = classification.soft_cross_entropy(own, targets.float(), weights, count)
        if kind == "hard":
            learned = classification.hard_distillation(reported, teacher.float(), weights, count)
        else:
            learned = (
                classification.soft_distillation(reported, teacher.float(), 3.0, weights, count) / classes
            )
        ours = (1 - share) * base + share * learned
        theirs = official.DistillationLoss(
            nn.CrossEntropyLoss(), lambda images, teacher=teacher: teacher, kind, share, 3.0
        )(None, (own_twin, told_twin), targets)
        ours.backward()
        theirs.backward()
        differences.note("loss", ours, theirs)
        differences.note("gradient", own.grad, own_twin.grad)
        differences.note("gradient", reported.grad, told_twin.grad)


def clip_losses(references: References, differences: Differences) -> None:
    official = references.file("mlfoundations/open_clip", "src/open_clip/loss.py")
    for kind in ("clip", "siglip"):
        (image, image_twin), (text, text_twin) = (leaf(wave(5, 8, phase=p)) for p in (0.0, 1.3))
        scale, scale_twin = leaf(torch.tensor(9.0))
        bias, bias_twin = leaf(torch.tensor(-4.0))
        features = [F.normalize(x, dim=-1) for x in (image_twin, text_twin)]
        if kind == "clip":
            ours = contrastive.clip(image, text, scale)
            theirs = official.ClipLoss()(*features, scale_twin)
        else:
            ours = contrastive.siglip(image, text, scale, bias)
            theirs = official.SigLipLoss()(*features, scale_twin, bias_twin)
        ours.backward()
        theirs.backward()
        differences.note("loss", ours, theirs)
        for one, other in ((image, image_twin), (text, text_twin), (scale, scale_twin)):
            differences.note("gradient", one.grad, other.grad)


def clip_tokens(references: References, differences: Differences) -> None:
    official = references.load("openai/CLIP", "clip.simple_tokenizer")
    folder = references.path("openai/CLIP")
    assert folder is not None
    merges = folder / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    theirs, ours = (
        official.SimpleTokenizer(str(merges)),
        text_tokenizer.Tokenizer(text_tokenizer.read_merges(merges), repaired=True),
    )
    draw = random.Random(0)
    texts = [chr(i) for i in range(0x3000) if chr(i).isprintable()]
    texts += ["".join(draw.choices(texts, k=draw.randrange(1, 24))) for _ in range(3000)]
    folders = [Path(__file__).parents[2] / name for name in ("docs", "src/omma/methods")]
    texts += [line for f in folders for path in f.iterdir() if path.is_file() for line in path.open()]
    for text in texts:
        one, other = ours.encode(text), theirs.encode(text)
        differences.note("loss", float(list(one) != list(other)), 0.0)


ROWS = [
    Row(
        "moco", "MoCo v3, its whole step: loss, key encoder, batch norms", "facebookresearch/moco-v3",
        "MoCo_ViT", moco_method, "it moves the keys' average before a step, we after the one before",
    ),
    Row(
        "simclr", "NT-Xent", "google-research/simclr", "tf2.objective.add_contrastive_loss", simclr_loss,
        "it adds the two directions' means, we take the mean of them; TensorFlow's functions by torch's",
    ),
    Row("lightly", "NT-Xent", "lightly", "NTXentLoss", lightlys_loss),
    Row(
        "deit", "DeiT's distillation, hard and soft", "facebookresearch/deit", "DistillationLoss", deit_losses
    ),
    Row("clip", "CLIP's loss, and SigLIP's", "mlfoundations/open_clip", "ClipLoss, SigLipLoss", clip_losses),
    Row(
        "tokens", "CLIP's tokenizer (share of texts that differ)", "openai/CLIP", "SimpleTokenizer.encode",
        clip_tokens, "unicode oddities, random strings and these docs; ftfy on both sides",
    ),
    Row("lejepa", "LeJEPA's statistic", "rbalestr-lab/lejepa", "EppsPulley", lejepa_statistic),
]  # fmt: skip
