"""DeiT: a transformer that learns from labels and from a teacher [Touvron 2020, arXiv 2012.12877].

Besides the class token there is a distillation token, each with its head. The class token learns the labels,
the distillation token the predictions of a trained network, best a convolutional one, on the same mixed view.
To classify, both heads' probabilities are averaged.

    hard = (CE(z_class, t) + CE(z_distilled, argmax z_teacher)) / 2                                 [eq. 3]
    soft = (1 - l) CE(z_class, t) + l T^2 KL(softmax(z_teacher / T) || softmax(z_distilled / T))    [eq. 2]

Augmentation, mixing and targets are those of `omma methods supervised`. As in the published code, the soft
loss is divided by the number of classes (per_class false gives the equation). That code averages logits to
classify; here, as in the paper, probabilities are averaged.

Costs: one forward and backward pass per view, and the teacher's forward pass.
Choose it when images are labelled and another classifier beats a transformer on them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from omma.backbones.layers.heads import classifier
from omma.core import collectives, protocols
from omma.core.protocols import (
    Backbone,
    Batch,
    Clock,
    Context,
    Extras,
    Needs,
    ParamGroup,
    Recipe,
    StepOutput,
)
from omma.losses import classification
from omma.methods.shared import labelled_views, teaching
from omma.train import param_groups


@dataclass(frozen=True, kw_only=True)
class Config(labelled_views.Labelled, teaching.Taught):
    """The paper's defaults, for ImageNet."""

    def __post_init__(self) -> None:
        labelled_views.Labelled.__post_init__(self)
        teaching.Taught.__post_init__(self)


def needs(config: Config) -> Needs:
    """Labels, a distillation token, and a teacher."""
    return Needs(
        labels=True,
        backbone_options=teaching.TOKEN,
        model="teacher",
        kind=teaching.TEACHER,
        beside=("classifier.weight",),
    )


views = labelled_views.plan


def paper(image_size: int, model: str) -> Recipe:
    """1,008 views a step; 100 epochs are the paper's 300, since each shows every image three times.

    The rate changes with each of the paper's epochs, one later than it might. Of tokens and positions only
    the distillation token decays, as in timm 0.3.2, with which it was trained.

    `omma pretrain IMAGES --method deit --recipe paper --model deit-b/16 --epochs 100 --method.teacher RUN`
    The paper's top-1 on ImageNet with a RegNetY-16GF (82.9) as teacher: 74.5 (deit-ti), 81.2 (deit-s), 83.4
    (deit-b), at 224 px, by the published code; without a teacher 72.2, 79.8, 81.8.
    """
    return Recipe(
        config=Config(), batch=336, decayed=("dist_token",), encoder={"distilled": True, "init": "deit"},
        **labelled_views.PAPER,
    )  # fmt: skip


def small(image_size: int, model: str) -> Recipe:
    """1,000 to 100,000 images on one machine: weaker augmentation, one view per image, as for supervised.

    `omma pretrain cifar10_25k.zip --method deit --method.teacher RUN --model vit-n/4 --budget 10m` on two
    cores with a supervised run that took as long (k-NN 69.0 %): 64.5 %, the untrained network's 28.2
    (docs/benchmarks.md).
    """
    return Recipe(
        config=Config(**labelled_views.small(image_size)), batch=128, lr=1e-3, lr_end=1e-5, warmup=0.05,
        weight_decay=0.05, clip=3.0, encoder={"distilled": True},
    )  # fmt: skip


class Method(protocols.Method):
    """Encoder with class and distillation token, a head for each, and the frozen teacher."""

    teacher: Backbone

    def __init__(self, encoder: Backbone, config: Config, context: Context) -> None:
        super().__init__()
        self.config, self.classes = config, context.classes
        teaching.require_token("deit", encoder)
        self.encoder = encoder
        self.head = classifier(encoder.dim, context.classes)
        self.distilled = classifier(encoder.dim, context.classes)
        teaching.take(self, config, context)

    def train(self, mode: bool = True) -> "Method":
        """The teacher stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batch: Batch, clock: Clock) -> StepOutput:
        c = self.config
        images, targets, weights = labelled_views.examples(batch, len(self.classes), c)
        count = collectives.mean(weights.sum())
        teacher = teaching.logits(self, images)
        features = self.encoder(images)
        assert features.prefix is not None, "it has a distillation token"
        logits = self.head(features.pooled).float()
        distilled = self.distilled(features.prefix[:, 1]).float()

        supervised = classification.soft_cross_entropy(logits, targets, weights, count)
        loss = teaching.mixed_loss(c, supervised, distilled, teacher, weights, count)

        label, teacher_class = targets.argmax(-1), teacher.argmax(-1)  # of a mixed image: the larger share's
        predicted = classification.mean_probabilities(logits.detach(), distilled.detach()).argmax(-1)
        agree = distilled.detach().argmax(-1) == teacher_class
        metrics = {
            "accuracy": labelled_views.share(predicted == label, weights, count),
            "accuracy_teacher": labelled_views.share(teacher_class == label, weights, count),
            "agreement": labelled_views.share(agree, weights, count),
        }
        return StepOutput(loss, metrics)

    def extras(self) -> Extras:
        """Both heads: `classifier` reads the pooled feature, `distilled` the second of the prefix tokens."""
        heads = {"classifier": self.head, "distilled": self.distilled}
        tensors = {f"{h}.{n}": p.detach() for h, head in heads.items() for n, p in head.named_parameters()}
        return Extras(tensors, {"classes": list(self.classes)})

    def groups(self) -> Iterable[ParamGroup]:
        yield from param_groups.standard(self.encoder, "encoder")
        yield from param_groups.standard(self.head, "classifier")
        yield from param_groups.standard(self.distilled, "distilled")
