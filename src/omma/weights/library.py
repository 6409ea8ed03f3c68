"""Files of timm's and torchvision's networks: their tensors by the names that the library has for them.

The network is the one that config.json or the caller names; `--as timm:NAME`, `--as torchvision:NAME`.
"""

import difflib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from omma import backbones
from omma.backbones import external
from omma.core.errors import line, need
from omma.core.protocols import Backbone, Extras, Preprocess
from omma.weights.hub import LibraryWeights
from omma.weights.misfit import BESIDE, COUNTERS, made, without_prefix

# arguments of timm.create_model that omma sets from other sources, or that matter in training only
REPLACED = (
    "num_classes",
    "in_chans",
    "img_size",
    "drop_rate",
    "drop_path_rate",
    "pretrained",
    "pretrained_cfg",
)
# torchvision's Vision Transformers by timm's names, and their parameters
VITS = {"b": "base", "l": "large", "h": "huge"}
VIT_NAMES = (
    (r"(?<![^.])class_token$", "cls_token"),
    (r"(?<![^.])conv_proj\.", "patch_embed.proj."),
    (r"(?<![^.])encoder\.pos_embedding$", "pos_embed"),
    (r"(?<![^.])encoder\.ln\.", "norm."),
    (r"(?<![^.])encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_(weight|bias)$", r".attn.qkv.\1"),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.linear_([12])\.", r".mlp.fc\1."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"(?<![^.])heads\.head\.", "head."),
)
DENSENET = (r"(denselayer\d+\.(?:norm|conv))\.([12]\.)", r"\1\2")  # torchvision's names of old
HALF = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
# torchvision's, made with weights, convert ImageNet's normalisation into this one themselves
CONVERTING = ("googlenet", "inception_v3")


def unpack(
    name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any], source: str
) -> LibraryWeights:
    """A file's weights of the network `timm:NAME` or `torchvision:NAME`, under that library's own names.

    config: contents of config.json, of which pretrained_cfg, model_args and label_names are read; what it
    does not say is as the library has it for that network. A prefix that the names share is removed. Files of
    the network's authors are converted as timm does, or, where all shapes agree one to one, taken in order.
    Raises a one-line ValueError for a name that is none, and for settings of a wrong type.
    """
    library, _, model = name.partition(":")
    weights, tensors = _named(library, model, tensors, config)
    outline = backbones.outline(**weights.spec())
    found, notes = _aligned(weights, tensors, outline.state_dict(), source)
    weights = weights.with_tensors(found)._replace(notes=tuple(notes))
    return _resized(weights, outline, config)


def beside(weights: LibraryWeights, expected: Mapping[str, Tensor]) -> set[str]:
    """Names of the file's tensors that belong to heads which the encoder does without."""
    starts = BESIDE if weights.library == "torchvision" else tuple(f"{name}." for name in external.HEADS)
    return {name for name in weights.tensors if name not in expected and name.startswith(starts)}


def named_in(config: Mapping[str, Any]) -> str | None:
    """The network that a config.json of timm names; None if timm does not have it, or is not installed."""
    architecture = config.get("architecture")
    if not isinstance(architecture, str):
        return None
    try:
        import timm
    except ImportError:
        return None
    return f"timm:{architecture}" if timm.is_model(architecture) else None


# ---------------------------------------------------------------- what the library says of a network
def _named(
    library: str, model: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> tuple[LibraryWeights, Mapping[str, Tensor]]:
    """The network with its settings, but without tensors; and those under the names of its family."""
    if library not in ("timm", "torchvision") or not model:
        raise ValueError(f"{library}:{model} is no network of a library: write timm:NAME or torchvision:NAME")
    if library == "timm":
        return _of_timm(model, config), tensors
    cfg = _torchvision_cfg(model)
    renamed = {re.sub(*DENSENET, n): x for n, x in tensors.items()} if "densenet" in model else dict(tensors)
    vit = re.fullmatch(r"vit_([blh])_(\d+)", model)
    given = dict(config.get("pretrained_cfg") or {})
    assumed = "" if "mean" in given else f"torchvision's for {model}"
    architecture = model
    if vit:
        library, architecture = "timm", f"vit_{VITS[vit[1]]}_patch{vit[2]}_224"
        renamed = {_renamed(n): x for n, x in renamed.items()}
        cfg["classifier"] = "head"
    weights = LibraryWeights(
        {}, {**cfg, **given}, architecture, library=library, classes=_classes(config), assumed=assumed
    )
    return weights, renamed


def _of_timm(model: str, config: Mapping[str, Any]) -> LibraryWeights:
    timm = need("timm", "timm")
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        similar = difflib.get_close_matches(architecture, timm.list_models(), 3)
        raise ValueError(f"timm has no {architecture}; there is {', '.join(similar) or 'nothing like it'}")
    try:
        own = timm.get_pretrained_cfg(model)
    except RuntimeError as error:
        raise ValueError(f"timm:{model}: {line(error)}; leave out what follows the point") from error
    given, arguments = (dict(config.get(part) or {}) for part in ("pretrained_cfg", "model_args"))
    cfg = {**(own.to_dict() if own else {}), **given}
    size = cfg.get("input_size") or (3, 224, 224)
    channels = arguments.get("in_chans", size[0])
    if type(channels) is not int or not 1 <= channels <= 1024:
        raise ValueError(f"its config.json says in_chans={channels!r}: a number of channels is expected")
    made_for = arguments.get("img_size")
    sides = {*made_for} if isinstance(made_for, list) else {made_for}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int | None):
        raise ValueError(f"its config.json says img_size={made_for!r}: images are square in omma")
    used = {name: x for name, x in sorted(arguments.items()) if name not in REPLACED and x is not None}
    return LibraryWeights(
        {}, cfg, architecture, channels=channels, image_size=side, arguments=json.dumps(used) if used else "",
        classes=_classes({**cfg, **config}), assumed="" if "mean" in given else f"timm's for {model}",
    )  # fmt: skip


def _torchvision_cfg(model: str) -> dict[str, Any]:
    """How torchvision prepares images for its default weights, in the words of timm's pretrained_cfg."""
    models = need("torchvision.models", "timm")
    available = models.list_models(module=models)
    if model not in available:
        similar = ", ".join(difflib.get_close_matches(model, available, 3))
        raise ValueError(f"torchvision has no {model}; there is {similar or 'nothing like it'}")
    transform = models.get_model_weights(model).DEFAULT.transforms()
    size = transform.crop_size[0]
    cfg: dict[str, Any] = {"input_size": (3, size, size), "crop_pct": size / transform.resize_size[0]}
    normalised = HALF if model in CONVERTING else {"mean": transform.mean, "std": transform.std}
    with torch.device("meta"):
        network = models.get_model(model, weights=None)
    children = dict(network.named_children())
    last = next(name for name in reversed(children) if name in ("fc", "classifier", "heads", "head"))
    layers = {
        n: m for n, m in children[last].named_modules() if any(True for _ in m.parameters(recurse=False))
    }
    if len(layers) == 1 and isinstance(
        next(iter(layers.values())), nn.Linear
    ):  # else it reads no pooled feature
        cfg["classifier"] = ".".join(filter(None, (last, *layers)))
    return {**cfg, **normalised}


def _classes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes, where the settings have them: a list, or by number."""
    names = config.get("label_names") or ()
    if isinstance(names, Mapping):
        names = [names[key] for key in sorted(names, key=int)] if all(map(str.isdigit, names)) else ()
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


# ---------------------------------------------------------------- tensors under the library's names
def _aligned(
    weights: LibraryWeights, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """The file's tensors by the network's names, and what was done for it. Raises ValueError if none fit."""
    plain, prefix = without_prefix(tensors, expected.keys())
    notes = [f"the prefix {prefix!r} of its names is left out"] if prefix else []
    if _covers(plain, expected):
        return plain, notes
    for attempt, note in _converted(weights, plain):
        if _covers(attempt, expected):
            return dict(attempt), [*notes, note]
    return plain, notes  # what does not fit is said where it is loaded


def _covers(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return all(name in tensors or made(name) for name in expected)


def _converted(
    weights: LibraryWeights, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[Mapping[str, Tensor], str]]:
    """The tensors converted by timm, and in the network's order, each with what is to be said of it."""
    network = _whole(weights, tensors)
    if network is None:
        return
    if weights.library == "timm":
        timm = need("timm", "timm")
        module = sys.modules[timm.models.model_entrypoint(weights.architecture).__module__]
        convert = getattr(module, "checkpoint_filter_fn", None)
        if convert is not None:
            converted = None
            with suppress(Exception):  # what it was not written for fails in many ways
                converted = convert(dict(tensors), network)
            if converted is not None:
                yield converted, "its names are converted to timm's, by timm"
    own = dict(network.state_dict())
    counted = len(tensors) == len(own)
    mine = own if counted else {n: x for n, x in own.items() if not n.endswith(COUNTERS)}
    if len(mine) == len(tensors) and all(
        x.shape == y.shape and a.rpartition(".")[2] == b.rpartition(".")[2]
        for (a, x), (b, y) in zip(mine.items(), tensors.items(), strict=True)
    ):
        yield (
            dict(zip(mine, tensors.values(), strict=True)),
            f"its names ({next(iter(tensors))}, ...) are another implementation's: its {len(mine)} tensors "
            f"are taken in their order, in which every shape is that of {weights.name}",
        )


def _whole(weights: LibraryWeights, tensors: Mapping[str, Tensor]) -> Any:
    """The library's network with its classifier, without values; None if it cannot be made."""
    classes = next((len(x) for x in reversed(list(tensors.values())) if x.ndim in (1, 2)), 1000)
    try:
        with torch.device("meta"):
            if weights.library == "timm":
                arguments = json.loads(weights.arguments or "{}")
                timm = need("timm", "timm")
                return timm.create_model(weights.architecture, num_classes=classes, **arguments)
            return need("torchvision.models", "timm").get_model(
                weights.architecture, weights=None, num_classes=classes
            )
    except Exception:  # a network that computes with values while it is made
        return None


def _resized(weights: LibraryWeights, outline: Any, config: Mapping[str, Any]) -> LibraryWeights:
    """The network for the channels and the image size that the tensors were made for."""
    first = weights.tensors.get(next(iter(outline.first_layers), ""))
    if first is not None and first.ndim == 4:
        weights = weights._replace(channels=first.shape[1])
    own, theirs = outline.state_dict().get("pos_embed"), weights.tensors.get("pos_embed")
    if own is None or theirs is None or own.ndim != 3 or theirs.ndim != 3 or own.shape == theirs.shape:
        return weights
    rows, columns = outline.grid(outline.image_size, outline.image_size)
    side = round(max(theirs.shape[1] - (own.shape[1] - rows * columns), 1) ** 0.5)
    size = side * outline.patch
    if weights.assumed:  # evaluated at the size that its positions are made for
        weights = weights._replace(config={**weights.config, "input_size": (weights.channels, size, size)})
    return weights._replace(image_size=size)


def _renamed(name: str) -> str:
    for pattern, replacement in VIT_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


# ---------------------------------------------------------------- the classifier, and what is said
def classifier(weights: LibraryWeights, encoder: Backbone) -> tuple[Extras, set[str]]:
    """The classifier, linear on the encoder's pooled feature, and the names of heads that are none."""
    linear = {
        name.removesuffix(".weight"): x.float()
        for name, x in weights.heads.items()
        if name.endswith(".weight") and x.ndim == 2
    }
    biases = {
        head: weights.heads.get(f"{head}.bias", x.new_zeros(len(x))).float() for head, x in linear.items()
    }
    facts = {"classes": list(weights.classes)} if weights.classes else {}
    widths = [x.shape[1] for x in linear.values()]
    tensors: dict[str, Tensor] = {}
    if len(linear) == 1 and widths[0] == encoder.dim:
        ((head, weight),) = linear.items()
        tensors = {"classifier.weight": weight, "classifier.bias": biases[head]}
    elif linear.keys() == {"head", "head_dist"} and encoder.prefix > 1:  # DeiT's
        for name, head in (("classifier", "head"), ("distilled", "head_dist")):
            tensors |= {f"{name}.weight": linear[head], f"{name}.bias": biases[head]}
    elif len(linear) > 1 and sum(widths) == encoder.dim:  # CrossViT's: the mean over the branches' logits
        tensors = {
            "classifier.weight": torch.cat(list(linear.values()), 1) / len(linear),
            "classifier.bias": torch.stack(list(biases.values())).mean(0),
        }
    if tensors and len(weights.classes) != len(tensors["classifier.weight"]):
        facts = {}
    return (Extras(tensors, facts), set()) if tensors else (Extras({}), {*weights.heads})


def normalisation(preprocess: Preprocess) -> str:
    """Mean and deviation, in words."""
    mean, std = (", ".join(f"{v:.3g}" for v in values) for values in (preprocess.mean, preprocess.std))
    return f"mean ({mean}) and deviation ({std})"
