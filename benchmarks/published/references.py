"""Published code, imported from clones in a folder, made to run on a CPU."""

import ast
import contextlib
import copy
import importlib
import importlib.util
import re
import subprocess
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np
import timm.layers
import timm.models.vision_transformer
import timm.optim
import torch
import torch.distributed
import yaml
from published.tensorflow_functions import flags, tensorflow
from published.tensorflow_functions import stand_in as _module
from torch import Tensor, nn

SOURCES = {
    name: f"https://github.com/{name}"
    for name in (
        "facebookresearch/dino",
        "bytedance/ibot",
        "facebookresearch/dinov2",
        "facebookresearch/mae",
        "microsoft/SimMIM",
        "microsoft/unilm",
        "facebookresearch/moco-v3",
        "google-research/simclr",
        "rbalestr-lab/lejepa",
        "facebookresearch/deit",
        "TACJu/TransFG",
        "openai/CLIP",
        "mlfoundations/open_clip",
        "KaiyangZhou/CoOp",
        "baaivision/EVA",
    )
}


class References:
    """Clones in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, source: str) -> Path | None:
        owner, name = source.split("/")
        tried = [self.folder / f"{owner}+{name}", self.folder / name]
        return next((path for path in tried if path.is_dir()), None)

    def commit(self, source: str) -> str:
        command = ["git", "-C", str(self.path(source)), "rev-parse", "--short=7", "HEAD"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "commit unknown"

    def file(self, source: str, path: str) -> Any:
        """Import one file of the clone without its package."""
        folder = self.path(source)
        assert folder is not None
        spec = importlib.util.spec_from_file_location("reference", folder / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def load(
        self,
        source: str,
        module: str,
        inside: str = "",
        real: tuple[str, ...] = (),
        instead: Mapping[str, Any] = MappingProxyType({}),
    ) -> Any:
        """Import a module of the clone, or of a folder in it; afterwards it is not importable any more.

        real: modules of the clone that are imported in spite of a replacement's name. instead: more modules
        that replace others.
        """
        clone = self.path(source)
        assert clone is not None
        folder = clone / inside
        stand_ins = {name: module for name, module in _stand_ins().items() if name not in real} | instead
        before = {name: sys.modules[name] for name in stand_ins if name in sys.modules}
        sys.path.insert(0, str(folder))
        sys.modules.update(stand_ins)
        try:
            return importlib.import_module(module)
        finally:  # their `utils`, `models` and the like must not meet those of other clones
            sys.path.remove(str(folder))
            for name, found in list(sys.modules.items()):
                if name in stand_ins or any(str(folder) in place for place in _places(found)):
                    del sys.modules[name]
            sys.modules.update(before)


def _places(module: Any) -> list[str]:
    """The location of a module: its file, or a namespace's folders."""
    file = getattr(module, "__file__", None)
    return [file] if isinstance(file, str) else [str(place) for place in getattr(module, "__path__", ())]


def _block(*args: Any, qk_scale: None = None, **options: Any) -> nn.Module:
    """timm's block, with an argument that older versions had."""
    return timm.models.vision_transformer.Block(*args, **options)


class _Config(dict[str, Any]):
    """A dictionary whose entries are attributes, too."""

    __getattr__ = dict.__getitem__
    __setattr__ = dict.__setitem__  # pyright: ignore[reportAssignmentType]

    def clone(self) -> "_Config":
        return _Config({k: v.clone() if isinstance(v, _Config) else copy.copy(v) for k, v in self.items()})

    def defrost(self) -> None:
        """As yacs has it; nothing is ever frozen here."""

    freeze = defrost

    def merge(self, other: dict[str, Any]) -> None:
        for key, value in other.items():
            if isinstance(value, dict):
                self[key].merge(value)
            else:  # YAML reads 1e-4 as text
                self[key] = ast.literal_eval(value) if re.fullmatch(r"\d+e-\d+", str(value)) else value

    def merge_from_file(self, path: str) -> None:
        self.merge(yaml.safe_load(Path(path).read_text()))


class _Sequences:
    """Replaces xformers' packing of sequences; only heads use it here, row by row."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths

    @classmethod
    def from_tensor_list(cls, tensors: list[Tensor]) -> tuple["_Sequences", Tensor]:
        return cls([t.shape[1] for t in tensors]), torch.cat(tensors, dim=1)

    def split(self, x: Tensor) -> list[Tensor]:
        return list(x.split(self.lengths, dim=1))


def _stand_ins() -> dict[str, types.ModuleType | mock.MagicMock]:
    """Replacements for modules that the clones import but that are not needed here, or have moved."""
    fsdp = _module(
        "dinov2.fsdp",
        get_fsdp_wrapper=None,
        ShardedGradScaler=None,
        get_fsdp_modules=lambda m: [types.SimpleNamespace(params=list(getattr(m, "net", m).parameters()))],
        reshard_fsdp_model=lambda m: None,
    )
    fmha = types.SimpleNamespace(BlockDiagonalMask=_Sequences)
    xformers_ops = _module("xformers.ops", fmha=fmha)
    compat = _module("tensorflow.compat", v2=tensorflow())
    vision = timm.models.vision_transformer
    absl = flags()
    registry = types.SimpleNamespace(register=lambda: lambda trainer: trainer)
    names = (
        "dassl",
        "dassl.metrics",
        "dassl.utils",
        "dassl.optim",
        "tensorboardX",
        "evaluation",
        "evaluation.unsupervised",
        "evaluation.unsupervised.unsup_cls",
        "absl.app",
        "absl.logging",
        "augment",  # DeiT's, which wants an older timm
        "tensorflow_datasets",
        "clip.model",
        "clip.clip",
        "dall_e",
        "dall_e.utils",
        "sh",
        "timm.optim.nadam",
        "timm.optim.novograd",
        "timm.optim.radam",
        "torch.utils.tensorboard",
    )
    return {
        **{name: mock.MagicMock() for name in names},
        "absl": _module("absl", flags=absl, app=mock.MagicMock(), logging=mock.MagicMock()),
        "absl.flags": absl,
        "timm.models.layers": _module("timm.models.layers", **vars(timm.layers)),
        "timm.models.layers.helpers": _module("timm.models.layers.helpers", **vars(timm.layers.helpers)),
        "timm.models.registry": _module("timm.models.registry", register_model=lambda f: f),
        "timm.models.vision_transformer": _module(
            "timm.models.vision_transformer", **{**vars(vision), "Block": _block}
        ),
        "dassl.engine": _module("dassl.engine", TRAINER_REGISTRY=registry, TrainerX=object),
        "dinov2.fsdp": fsdp,
        "ml_collections": _module("ml_collections", ConfigDict=_Config),
        "yacs.config": _module("yacs.config", CfgNode=_Config),
        "torch._six": _module("torch._six", inf=torch.inf),
        "timm.optim.optim_factory": _module(
            "timm.optim.optim_factory", add_weight_decay=timm.optim.param_groups_weight_decay
        ),
        "dinov2.train.train": _module("dinov2.train.train", get_args_parser=None, main=None),
        "data.data_finetune": _module("data.data_finetune", build_loader_finetune=None),
        "xformers": _module("xformers", ops=xformers_ops),
        "xformers.ops": xformers_ops,
        "tensorflow": _module("tensorflow", compat=compat),
        "tensorflow.compat": compat,
        "tensorflow.compat.v2": compat.v2,
    }


@contextlib.contextmanager
def on_this_machine() -> Iterator[None]:
    """Let code written for GPUs, several processes and an older NumPy run on a CPU."""
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    patches = [
        mock.patch.object(torch.Tensor, "cuda", lambda x, *_, **__: x),
        mock.patch.object(nn.Module, "cuda", lambda m, *_, **__: m),
        mock.patch.object(np, "float", float, create=True),
        mock.patch.object(np, "int", int, create=True),
        mock.patch.dict("os.environ", XFORMERS_DISABLED="1"),
    ]
    try:
        with contextlib.ExitStack() as stack:
            for patch in patches:
                stack.enter_context(patch)
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # of what is deprecated in their code
            yield
    finally:
        torch.distributed.destroy_process_group()
