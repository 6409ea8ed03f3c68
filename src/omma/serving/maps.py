"""How much each pixel matters to an answer, as arrays and as a picture."""

import io
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from omma.inspection import registry
from omma.inspection.maps import maps_of, on_device, subject_of
from omma.reporting.pictures import overlay, tile, with_scale
from omma.serving.engine import Engine
from omma.serving.refusals import Refused
from omma.weights import Model


class Maps:
    """The kinds of maps that the served model can have, by a copy of it, which is made for the first map."""

    def __init__(self, engine: Engine) -> None:
        self.engine, given = engine, engine.model
        p = given.preprocess
        model = Model(engine.network, p, given.provenance, given.extras)
        subject, _ = subject_of(model, torch.zeros(1, p.channels, p.size, p.size))
        kinds = [registry.find(name) for name in registry.KINDS]
        self.kinds = tuple(k.name for k in kinds if k.one_map is not None and k.lacks(subject) is None)

    @cached_property
    def model(self) -> Model:
        """The copy, which nobody else uses: some kinds change the network while they compute."""
        return on_device(self.engine.model, self.engine.device, self.engine.precision)

    def of(
        self, image: Float[Tensor, "c h w"], what: str, class_name: str | None
    ) -> Callable[[], Float[np.ndarray, "h w"]]:
        """A function that computes the map; it raises Refused (400) for a class that there is not."""

        def run() -> np.ndarray:
            try:
                return maps_of(self.model, image[None], what, class_name)[0].astype(np.float32)
            except ValueError as error:
                raise Refused(400, str(error).replace("--class", "class").replace("--what", "what")) from None

        return run

    def drawn(self, image: Float[Tensor, "c h w"], values: Float[np.ndarray, "h w"]) -> bytes:
        """A PNG of the map over what the network sees of the image, with the scale of its colours.

        They run from 0 to the map's largest value, or to twice its mean if that is larger: an even map looks
        even.
        """
        p = self.engine.model.preprocess
        mean, std = (torch.tensor(v)[:, None, None] for v in (p.mean, p.std))
        seen = (image.float().cpu() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()
        channels = min(seen.shape[-1], 3)
        base = tile(seen, (np.zeros(channels), np.ones(channels)))
        picture = with_scale(overlay(base, values, max(float(values.max()), 2 * float(values.mean()))))
        picture.save(buffer := io.BytesIO(), "PNG")
        return buffer.getvalue()
