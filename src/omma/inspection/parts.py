"""The patches that TransFG has chosen as parts, and the scores they were chosen by [He 2021, 2103.07976]."""

import numpy as np
import torch
from jaxtyping import Float

from omma.backbones.adapters.transfg import Parts
from omma.inspection.kinds import Explanation, Heat, Kind, Rows, Subject


@torch.no_grad()
def scores(subject: Subject) -> Float[np.ndarray, "n heads gh gw"]:
    """How strongly each head of the earlier layers relates the class token to each patch."""
    encoder = subject.encoder
    assert isinstance(encoder, Parts), "the caller has asked `lacks`"
    found = [encoder.part_scores(pixels).float().cpu() for pixels in subject.pixels.split(subject.batch)]
    return torch.cat(found).unflatten(-1, subject.grid).numpy()


@torch.no_grad()
def covered(subject: Subject) -> Float[np.ndarray, "n h w"]:
    """How many heads chose a patch that covers each pixel, as a share of the heads."""
    encoder = subject.encoder
    assert isinstance(encoder, Parts), "the caller has asked `lacks`"
    found = np.zeros((len(subject.pixels), *subject.size))
    boxes = torch.cat([encoder.boxes(pixels).cpu() for pixels in subject.pixels.split(subject.batch)])
    for i, own in enumerate(boxes.tolist()):
        for top, left, bottom, right in own:
            found[i, top:bottom, left:right] += 1 / len(own)
    return found


def lacks(subject: Subject) -> str | None:
    """Why there are no parts."""
    if isinstance(subject.encoder, Parts):
        return None
    return f"{subject.encoder.name} chooses no parts (omma finetune --adapt transfg makes one that does)"


def explain(subject: Subject) -> Explanation:
    """The chosen patches, and the scores."""
    chosen, found = covered(subject), scores(subject)
    rows = tuple(
        (Heat(chosen[i], i, f"{found.shape[1]} heads", top=1.0), Heat(found[i].mean(0), i))
        for i in range(len(found))
    )
    caption = (
        "Besides the class token, only the chosen patches reach the last block: of each head the one with "
        "the highest score. Left: the share of heads whose patch covers a spot. Right: the scores, the "
        "product of the earlier layers' attention, mean over the heads."
    )
    return Explanation(
        "Chosen parts", caption, (Rows(("chosen", "scores"), rows),), {"parts": chosen, "parts.scores": found}
    )


KIND = Kind(name="parts", explain=explain, lacks=lacks, one_map=covered, default=True)
