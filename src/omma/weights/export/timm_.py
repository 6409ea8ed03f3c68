"""Export to timm: the timm network that computes the same, and a folder like those on the hub."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn

import safetensors.torch
import torch
from torch import Tensor, nn

from omma import backbones
from omma.backbones.cait import CaiT
from omma.backbones.eva import Eva
from omma.backbones.external import Encoder as External
from omma.backbones.swin import Swin
from omma.backbones.vit import ViT
from omma.core.errors import install_command, line, need
from omma.core.protocols import Backbone, Preprocess
from omma.weights.classifier import Classifier
from omma.weights.export.check import Reopened, in_full_scale, left_out, range_note

ANY_SIZE = {"dynamic_img_size": True, "dynamic_img_pad": True}  # positions interpolated, images padded


class Twin(NamedTuple):
    """`timm.create_model(architecture, num_classes=0, **args)` has the encoder's parameters."""

    architecture: str
    args: dict[str, Any]


def twin(encoder: Backbone) -> Twin:
    """The timm network that computes the same. Raises ValueError if there is none, or no timm."""
    if encoder.adapter is not None:
        _refuse(encoder, f"no {encoder.adapter} adapter in its networks")
    for family, of_family in (
        (ViT, _vit), (Eva, _eva), (CaiT, _cait), (Swin, _swin), (External, _external)
    ):  # fmt: skip
        if isinstance(encoder, family):
            return of_family(encoder, SimpleNamespace(**(backbones.options(encoder.name) | encoder.spec())))
    _refuse(encoder, f"no {encoder.name}")


def timm_twin(encoder: Backbone) -> nn.Module:
    """timm's network of the same shape, in evaluation mode; it loads the encoder's state_dict strictly."""
    architecture, args = twin(encoder)
    return _create(encoder, architecture, num_classes=0, **args)


def _create(encoder: Backbone, name: str, **args: Any) -> Any:
    """Create timm's network. Raises ValueError if the installed timm is too old for it."""
    timm = need("timm", "timm")
    try:
        return timm.create_model(name, **args).eval()
    except (TypeError, RuntimeError) as error:  # an option or a network that this version lacks
        remedy = install_command("timm", "timm")
        raise ValueError(
            f"timm {timm.__version__} cannot make {encoder.name} ({line(error)}): {remedy}"
        ) from error


def _refuse(encoder: Backbone, why: str) -> NoReturn:
    raise ValueError(f"timm has {why}: export {encoder.name} as onnx or torch instead")


def _ratio(hidden: int, dim: int) -> float:
    """An mlp_ratio for which timm's int(dim * ratio) is `hidden`."""
    return hidden / dim if int(dim * (hidden / dim)) == hidden else (hidden + 0.5) / dim


def _shape(o: Any) -> dict[str, Any]:
    return {"img_size": o.image_size, "patch_size": o.patch, "in_chans": o.channels, "embed_dim": o.dim} | {
        "depth": o.depth, "num_heads": o.heads
    }  # fmt: skip


# ---------------------------------------------------------------- one function a family
def _vit(encoder: Backbone, o: Any) -> Twin:
    if o.positions == "rope":
        _refuse(encoder, "no rotary positions in its VisionTransformer")
    if o.mixer != "softmax":
        _refuse(encoder, f"no mixer like {o.mixer!r}")
    if o.eps not in (1e-6, 1e-5) or ((o.mlp == "swiglu" or o.distilled) and o.eps != 1e-6):
        _refuse(encoder, f"no network like this whose layer norms have eps={o.eps:g}")
    name = _vit_name(encoder, o)
    wide = 2 * o.hidden if o.mlp == "swiglu" else o.hidden  # gate and value of a gated layer
    args = _shape(o) | {"mlp_ratio": _ratio(wide, o.dim), "global_pool": "token"}
    args |= {} if _resamples_otherwise(encoder) else ANY_SIZE
    if o.pool != "token" and not o.distilled:
        args |= {"global_pool": "avg", "fc_norm": o.pool == "mean_fc_norm"}
    if name == "vit_giant_patch14_dinov2":
        args["init_values"] = 0.0  # overrides this architecture's default; timm takes 0 as none
    if o.layer_scale is not None:
        args["init_values"] = o.layer_scale
    if o.norm_pre or name.endswith("clip_224"):
        args["pre_norm"] = o.norm_pre
    optional = (
        (o.registers, "reg_tokens", o.registers),
        (not o.prefix_positions, "no_embed_class", True),
        (not o.class_token, "class_token", False),
        (not o.qkv_bias, "qkv_bias", False),
        (o.positions == "none", "pos_embed", "none"),
        (o.mlp == "quickgelu", "act_layer", "quick_gelu"),
    )
    return Twin(name, args | {key: value for needed, key, value in optional if needed})


def _resamples_otherwise(encoder: Backbone) -> bool:
    """Has it positions that timm, which antialiases, would interpolate differently?"""
    own = getattr(encoder, "interpolation", "antialias")
    return own != "antialias" and getattr(encoder, "pos_embed", None) is not None


def _vit_name(encoder: Backbone, o: Any) -> str:
    """The architecture of timm whose fixed choices (activation, eps, tokens) are the encoder's."""
    size = {192: "tiny", 384: "small", 1024: "large"}.get(o.dim, "base")
    if o.distilled:
        if o.registers or o.layer_scale is not None or o.norm_pre or o.mlp != "gelu" or not o.class_token:
            _refuse(encoder, "a distillation token in plain ViTs only")
        if o.pool == "mean_fc_norm":
            _refuse(encoder, "no norm after pooling in networks with a distillation token")
        return f"deit_{size if size in ('tiny', 'small') else 'base'}_distilled_patch16_224"
    if o.mlp == "swiglu":
        return "vit_giant_patch14_dinov2"
    if o.norm_pre or o.eps == 1e-5:
        return "vit_base_patch32_clip_224"
    return f"vit_{size}_patch16_224"


def _beit(encoder: Backbone, o: Any, args: dict[str, Any]) -> Twin:
    if o.rope != "none" or o.mlp == "swiglu" or o.attn_norm or not o.fused or o.eps != 1e-6:
        _refuse(encoder, "relative biases in networks of BEiT's form only")
    if o.mlp == "split_swiglu":
        args |= {"swiglu_mlp": True, "scale_mlp": o.sub_norm}
    args |= {"init_values": o.layer_scale or 0.0, "use_abs_pos_emb": o.positions == "learned"}
    args |= {"use_rel_pos_bias": o.bias == "layer", "use_shared_rel_pos_bias": o.bias == "shared"}
    return Twin("beit_base_patch16_224", args)


def _eva(encoder: Backbone, o: Any) -> Twin:
    args = _shape(o) | {"mlp_ratio": _ratio(o.hidden, o.dim), "qkv_bias": o.qkv_bias}
    args["global_pool"] = "token" if o.pool == "token" else "avg"
    if o.pool == "mean":
        args["use_fc_norm"] = False
    if o.bias != "none":
        return _beit(encoder, o, args)
    if o.eps not in (1e-6, 1e-5):
        _refuse(encoder, f"no network like this whose layer norms have eps={o.eps:g}")
    args |= {"qkv_fused": o.fused, "use_abs_pos_emb": o.positions == "learned"} | ANY_SIZE
    args |= {"use_rot_pos_emb": o.rope != "none", "swiglu_mlp": o.mlp != "gelu", "scale_mlp": o.sub_norm}
    if o.mlp == "split_swiglu" and not o.sub_norm:
        args["swiglu_align_to"] = 8 if o.hidden % 8 == 0 else 1
    optional = (
        (o.attn_norm, "scale_attn_inner", True),
        (o.registers, "num_reg_tokens", o.registers),
        (o.layer_scale is not None, "init_values", o.layer_scale),
    )
    args |= {key: value for needed, key, value in optional if needed}
    if o.rope == "indexed":
        args["ref_feat_shape"] = [o.rope_home, o.rope_home]
    elif o.rope == "centred":
        args |= {"rope_type": "dinov3", "rope_temperature": 100, "rope_rotate_half": True}
    if o.eps == 1e-6:
        name = ("eva02_tiny" if o.fused else "eva02_base") if o.rope == "indexed" else "eva_giant"
        return Twin(f"{name}_patch14_224", args)
    # DINOv3's defaults for rotary positions and layer scale must be overridden
    if o.rope == "indexed":
        args |= {"rope_type": "cat", "rope_temperature": 10_000, "rope_rotate_half": False}
    if o.layer_scale is None:
        _refuse(encoder, "no network with eps=1e-05 and without layer scale")
    args.setdefault("num_reg_tokens", 0)
    args.setdefault("use_fc_norm", o.pool == "mean_fc_norm")
    return Twin("vit_small_patch16_dinov3", args)


def _cait(encoder: Backbone, o: Any) -> Twin:
    return Twin(
        "cait_xxs24_224", _shape(o) | {"init_values": o.layer_scale, "depth_token_only": o.class_layers}
    )


def _swin(encoder: Backbone, o: Any) -> Twin:
    windows = [o.window] * len(o.depths) if isinstance(o.window, int) else list(o.window)
    scales = [2 ** (len(o.depths) - 1 - i) for i in range(len(o.depths))]
    sides = [encoder.grid(o.image_size, o.image_size)[0] * scale for scale in scales]
    if any(side > window and side % window for side, window in zip(sides, windows, strict=True)):
        _refuse(
            encoder,
            f"another way to pad windows of {o.window} (it shifts first), which {o.image_size} px needs",
        )
    args = {"img_size": o.image_size, "patch_size": o.token_patch, "in_chans": o.channels}
    args |= {"embed_dim": o.dim, "depths": list(o.depths), "num_heads": list(o.heads)}
    args |= {"window_size": windows[0] if len(set(windows)) == 1 else windows, "mlp_ratio": o.ratio}
    return Twin("swin_tiny_patch4_window7_224", args | {"qkv_bias": o.qkv_bias})


def _external(encoder: Backbone, o: Any) -> Twin:
    source, _, name = encoder.name.partition(":")
    if source != "timm":
        _refuse(encoder, f"not torchvision's {name}")
    if "non_local" in encoder.spec():
        _refuse(encoder, "no non-local blocks")
    timm, name = need("timm", "timm"), name.partition(".")[0]
    sized = {"img_size": o.image_size}
    for sizes in (sized | ANY_SIZE, sized, {}):
        args = {"in_chans": o.channels, **sizes}
        try:
            timm.create_model(name, num_classes=0, **args).load_state_dict(encoder.state_dict())
        except (TypeError, AssertionError):  # the network lacks this option
            continue
        except RuntimeError:
            break
        return Twin(name, args)
    _refuse(encoder, f"a head in {name} that omma leaves out")


# ---------------------------------------------------------------- on disk
def _head(architecture: str, encoder: Backbone, args: dict[str, Any], classifier: Classifier) -> str:
    """The name of timm's classifier. Raises ValueError, why, where the network's is another function."""
    if not classifier.plain:
        raise ValueError("has no such head")
    if _pooling_note(encoder):
        raise ValueError("averages two heads")
    network = _create(encoder, architecture, num_classes=len(classifier.classes), **args)
    head = network.get_classifier()
    if not isinstance(head, nn.Linear) or head.weight.shape != classifier.weight.shape:
        raise ValueError("has another head there")
    return next(name for name, module in network.named_modules() if module is head)


def write(
    encoder: Backbone, preprocess: Preprocess, folder: Path, classifier: Classifier | None = None
) -> None:
    """Write config.json and model.safetensors, as timm's models on the hub have them.

    With the classifier, where timm's network has such a head: `reopen` notes where it has not.
    """
    timm = need("timm", "timm")
    architecture, args = twin(encoder)
    state = {k: v.detach().contiguous().clone() for k, v in encoder.state_dict().items()}
    published_cfg = timm.models.get_pretrained_cfg(architecture)
    mean, std = in_full_scale(preprocess)
    size = [preprocess.channels, preprocess.size, preprocess.size]
    resized = round(preprocess.size / preprocess.crop_share)
    cfg = {
        "tag": "omma",
        "num_classes": 0,
        "input_size": size,
        "fixed_input_size": "img_size" in args and not args.get("dynamic_img_size", False),
        "pool_size": None,
        "interpolation": "bicubic",
        "crop_pct": preprocess.size / (resized + 1e-3),  # timm truncates size / crop_pct
        "crop_mode": "center",
        "mean": mean,
        "std": std,
        "classifier": getattr(published_cfg, "classifier", None),  # the layer that fine-tuning replaces
        # for other than three channels: timm assumes three here, and would refuse or convert them
        "first_conv": getattr(published_cfg, "first_conv", None) if preprocess.channels == 3 else None,
    }
    config = {"architecture": architecture, "num_classes": 0, "num_features": encoder.dim}
    config |= {"model_args": args, "pretrained_cfg": cfg}
    if classifier is not None:
        with contextlib.suppress(ValueError):
            head, k = _head(architecture, encoder, args, classifier), len(classifier.classes)
            bias = torch.zeros(k) if classifier.bias is None else classifier.bias
            state |= {f"{head}.weight": classifier.weight.contiguous(), f"{head}.bias": bias.contiguous()}
            cfg |= {"classifier": head, "num_classes": k}
            config |= {"num_classes": k, "label_names": list(classifier.classes)}
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    safetensors.torch.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def reopen(
    encoder: Backbone, preprocess: Preprocess, folder: Path, classifier: Classifier | None = None
) -> Reopened:
    """Load the folder with timm."""
    timm = need("timm", "timm")
    config = json.loads((folder / "config.json").read_text())
    notes = (*range_note(preprocess), f"read with timm {timm.__version__}")
    try:
        model = _create(encoder, f"local-dir:{folder}", pretrained=True)
    except AssertionError:  # before 1.0.16 or so
        args = config["model_args"] | {"checkpoint_path": str(folder / "model.safetensors")}
        model = _create(encoder, config["architecture"], num_classes=config["num_classes"], **args)
        notes += (
            "this timm does not support 'local-dir:'; give create_model the model_args and a checkpoint_path",
        )
    pooling_note = _pooling_note(encoder)
    if pooling_note:
        notes += (pooling_note,)
    if _resamples_otherwise(encoder):
        notes += ("timm interpolates positions differently, so it reads images of this size only",)

    if classifier is not None and not config["num_classes"]:
        try:
            _head(config["architecture"], encoder, config["model_args"], classifier)
        except ValueError as error:
            notes += (left_out("timm", str(error)),)

    def run(images: Tensor) -> tuple[Tensor, ...]:
        x = model.forward_features(images)
        if x.ndim == 4:
            channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
            patches = (x if channels_last else x.permute(0, 2, 3, 1)).flatten(1, 2)
        else:
            patches = x[:, encoder.prefix :]
        if pooling_note:
            return (x[:, 0] if encoder.pool == "token" else patches.mean(1)), patches
        pooled = model.forward_head(x, pre_logits=True)
        return (pooled, patches, model.forward_head(x)) if config["num_classes"] else (pooled, patches)

    free = "img_size" not in config["model_args"] or config["model_args"].get("dynamic_img_size", False)
    pooling = "model.forward_head(model.forward_features(images), pre_logits=True)"
    if pooling_note:
        pooling = f"model.{_pooled_expression(encoder)}"
    elif not config["num_classes"]:
        pooling = "model(images)"
    return Reopened(run, "any" if free else "fixed", notes, pooling)


def _pooling_note(encoder: Backbone) -> str | None:
    """How to get omma's pooled feature where timm's pooling differs; None where it does not."""
    if getattr(encoder, "dist_token", None) is None:
        return None
    feature = _pooled_expression(encoder)
    return f"timm averages class and distillation token; omma's pooled feature is {feature}"


def _pooled_expression(encoder: Backbone) -> str:
    token = encoder.pool == "token"
    return "forward_features(images)[:, 0]" if token else "forward_features(images)[:, 2:].mean(1)"
