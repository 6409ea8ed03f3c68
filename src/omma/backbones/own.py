"""Networks of the user's own by name: `networks:build` is what the function `build` of `networks` returns.

Parameters keep the module's own names, so its weights load into it without omma.
"""

import hashlib
import inspect
import logging
from typing import Any

from torch import get_default_device, nn

from omma.backbones.layers.foreign import json_arguments, share_statistics
from omma.backbones.layers.wrapped import Wrapped
from omma.core import own
from omma.core.errors import line

log = logging.getLogger(__name__)


def names() -> list[str]:
    """None: only the user knows them."""
    return []


def parse(name: str) -> dict[str, Any] | None:
    """No arguments, since the function determines the network; None for another family's."""
    return {} if own.is_own(name) else None


class Encoder(Wrapped):
    """A module as `wrap` takes it, which is built by the function that `name` names.

    prefix: tokens before those of the patches. drop_path: goes to the function, if that has a parameter of
    this name. arguments: a JSON object of further arguments of the function. Batch norms have their
    statistics over all processes.
    """

    def __init__(
        self,
        name: str,
        *,
        image_size: int,
        channels: int = 3,
        prefix: int = 0,
        drop_path: float = 0.0,
        arguments: str = "",
    ) -> None:
        if get_default_device().type == "meta":
            raise RuntimeError("a module of one's own may compute with values while it is built")
        self.image_size = image_size
        build = own.find(name)
        given = {"image_size": image_size, "channels": channels, "drop_path": drop_path}
        module = _built(build, name, given, json_arguments(arguments))
        share_statistics(module)
        super().__init__(module, channels=channels, image_size=image_size, prefix=prefix, name=name)
        self._source = hashlib.sha256(own.source(build).encode()).hexdigest()[:16]

    def described(self) -> dict[str, Any]:
        """How it is built, its layers, and a hash of the file that builds it."""
        return {**self.spec(), "module": str(self.module), "source": self._source}

    def spec(self) -> dict[str, Any]:
        return dict(self.built_from)


def _built(build: Any, name: str, given: dict[str, Any], further: dict[str, Any]) -> nn.Module:
    """What the function returns for the given arguments, as far as it has these, and for the further ones."""
    try:
        signature = inspect.signature(build)
        arguments = {**{k: v for k, v in given.items() if k in signature.parameters}, **further}
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(f"model {name} cannot be called: {line(error)}") from error
    if given["drop_path"] and "drop_path" not in arguments:
        log.warning("%s has no parameter drop_path: drop_path=%g is ignored", name, given["drop_path"])
    module = build(**arguments)
    if not isinstance(module, nn.Module):
        raise ValueError(f"model {name} returns a {type(module).__name__}: it must return a torch.nn.Module")
    return module
