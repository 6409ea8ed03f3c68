"""Signs that a method does not learn, by family (see `core.protocols.HealthSignal`)."""

import math

from omma.core.protocols import HealthSignal

DISTILLATION = (  # of `self_distillation.collapse_stats`
    HealthSignal(
        kind="remedy", metric="teacher_entropy", limit=0.9, of="teacher_entropy_limit",
        remedy="Lower --method.teacher-temp or --lr",
    ),
    HealthSignal(
        kind="remedy", metric="teacher_entropy", limit=-math.inf,
        remedy="Never switch centring off; raise --method.momentum, or lower --lr",
    ),
    HealthSignal(
        kind="verdict", metric="teacher_entropy", limit=0.98, of="teacher_entropy_limit",
        text="the teacher's targets are uniform (entropy {value:.2f} of {of:.2f} nats) and teach "
        "nothing",
        remedy="Lower --method.teacher-temp or --lr",
    ),
    HealthSignal(
        kind="verdict", metric="teacher_kl_to_uniform", limit=0.75, of="teacher_entropy_limit",
        text="nearly all images are assigned to the same prototype (KL to uniform {value:.2f} of "
        "{of:.2f} nats)",
        remedy="Never switch centring off; raise --method.teacher-temp, or lower --lr",
    ),
)  # fmt: skip

CONTRASTIVE = (  # of `contrastive.uniformity`
    HealthSignal(
        kind="remedy", metric="uniformity", limit=-math.inf,
        remedy="Lower --lr, use a larger batch, or raise --method.temperature",
    ),
    HealthSignal(
        kind="verdict", metric="uniformity", limit=-0.1,
        text="projections are nearly equal (uniformity {value:.2f}, 0 is collapse)",
        remedy="Lower --lr, or use a larger batch",
    ),
)  # fmt: skip

TRIPLET = (  # of `contrastive.uniformity`
    HealthSignal(
        kind="remedy", metric="uniformity", limit=-math.inf,
        remedy="Lower --lr, use a larger batch, or lower --method.margin",
    ),
    HealthSignal(
        kind="verdict", metric="uniformity", limit=-0.1,
        text="embeddings are nearly equal (uniformity {value:.2f}, 0 is collapse)",
        remedy="Lower --lr, or use a larger batch",
    ),
)  # fmt: skip

RECONSTRUCTION = (
    HealthSignal(
        kind="verdict", metric="error_vs_mean_image", limit=0.98, level="warn",
        text="reconstructions are no better than a constant picture ({value:.2f} of its "
        "error)",
        remedy="Train longer, or change the learning rate (--lr)",
    ),
)  # fmt: skip

EQUIVARIANCE = (  # of `motion.equivariance`
    HealthSignal(
        kind="verdict", metric="equivariance_error", limit=0.98, level="warn",
        text="features are predicted no better than if nothing had moved ({value:.2f} of that error)",
        remedy="Train longer, take frames further apart (--method.least, --method.most), or check the poses",
    ),
)  # fmt: skip
