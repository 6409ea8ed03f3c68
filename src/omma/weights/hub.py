"""Fetch published weights from the Hugging Face hub, directly or as timm names them.

Where the cache is and whether the network may be used, huggingface_hub decides (HF_HOME, HF_HUB_OFFLINE).
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

from omma.core.errors import line, need
from omma.weights.read_file import WEIGHTS, places

CONFIG, PREPROCESSOR, MERGES = "config.json", "preprocessor_config.json", "merges.txt"


class Timm(NamedTuple):
    """A network of timm's: its tensors, its pretrained_cfg, the name of its architecture, its classifier."""

    tensors: dict[str, Tensor]  # without the classifier's
    config: dict[str, Any]
    architecture: str
    classifier: Mapping[str, Tensor] = MappingProxyType(
        {}
    )  # "weight" and "bias" of its last linear layer, or nothing


def fetch_hf(name: str) -> Path:
    """The folder with config.json, weights (for `files.read`), and preprocessor_config.json if there is one.

    name: `hf:ORG/NAME`, `hf:ORG/NAME@REVISION` (branch, tag or commit), or a local folder, with `hf:` or not.
    Raises ValueError in one line where the package, repository, file, login or network is missing.
    """
    wanted = name.removeprefix("hf:")
    if wanted and Path(wanted).is_dir():
        return Path(wanted)
    hub = _hub()
    repository, _, revision = wanted.partition("@")
    with _refusing(name, repository):
        folder = Path(hub.hf_hub_download(repository, CONFIG, revision=revision or None)).parent
        commit = folder.name  # the branch may move while the other files are fetched
        with suppress(hub.errors.EntryNotFoundError):
            hub.hf_hub_download(repository, PREPROCESSOR, revision=commit)
        if "text_config" in read_config(folder):  # it reads texts, which its tokenizer's merges go with
            with suppress(hub.errors.EntryNotFoundError):
                hub.hf_hub_download(repository, MERGES, revision=commit)
        found = _weights(hub, repository, commit)
    if found is None:
        raise ValueError(
            f"{name} has no {WEIGHTS[0]} or {WEIGHTS[2]}; download its weights and give their file"
        )
    if found.suffix == ".json":
        shards = sorted(set(places(found).values()))
        with _refusing(name, repository):
            for shard in shards:
                hub.hf_hub_download(repository, shard, revision=commit)
    return folder


def _weights(hub: Any, repository: str, commit: str) -> Path | None:
    """The best of WEIGHTS that the repository has, or that the cache has where there is no network."""
    unsure = None
    for name in WEIGHTS:
        try:
            return Path(hub.hf_hub_download(repository, name, revision=commit))
        except hub.errors.LocalEntryNotFoundError as error:
            unsure = error
        except hub.errors.EntryNotFoundError:
            continue
    if unsure is not None:
        raise unsure
    return None


def fetch_timm(name: str) -> Timm:
    """The pretrained network `timm:NAME` or `timm:NAME.TAG`; without TAG timm's default for that name.

    timm downloads and converts. Raises ValueError in one line for an unknown name (with near ones) or tag, a
    network without published weights, and as `fetch_hf`.
    """
    timm = need("timm", "timm")
    wanted = name.removeprefix("timm:")
    wanted = timm.models.get_deprecated_models().get(wanted) or wanted
    architecture, _, tag = wanted.partition(".")
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(architecture, timm.list_models(), 3)
        raise ValueError(f"{name}: timm has no {architecture}; {_choice(near)}")
    published = [n for n in timm.list_pretrained(f"{architecture}*") if n.partition(".")[0] == architecture]
    if not published:
        raise ValueError(f"{name}: timm has no weights of {architecture}; leave them out or choose another")
    if tag and wanted not in published:
        raise ValueError(f"{name}: timm has no weights {tag} of {architecture}; {_choice(published)}")
    with _refusing(name, timm.models.get_pretrained_cfg_value(wanted, "hf_hub_id") or wanted):
        network = timm.create_model(wanted, pretrained=True)
    config: Any = network.pretrained_cfg
    return _parted(network.state_dict(), dict(config), architecture)


def timms(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Timm | None:
    """The weights of a folder as timm's own; None where timm has no such network.

    A network of other sizes than its name's (model_args) is none that a name alone could build.
    """
    architecture = config.get("architecture")
    if not isinstance(architecture, str) or config.get("model_args"):
        return None
    try:
        import timm
    except ImportError:
        return None
    if not timm.is_model(architecture):
        return None
    cfg = config.get("pretrained_cfg")
    return _parted(tensors, dict(cfg) if isinstance(cfg, dict) else {}, architecture)


def _parted(tensors: Mapping[str, Tensor], cfg: dict[str, Any], architecture: str) -> Timm:
    """The tensors with the classifier apart."""
    heads = cfg.get("classifier") or ()
    heads = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
    kept = {name: x for name, x in tensors.items() if not heads or not name.startswith(heads)}
    last = {name.removeprefix(h): x for h in heads[:1] for name, x in tensors.items() if name.startswith(h)}
    linear = last.keys() == {"weight", "bias"} and last["weight"].ndim == 2
    return Timm(kept, cfg, architecture, last if linear else {})


def read_config(folder: str | Path, name: str = CONFIG) -> dict[str, Any]:
    """The settings in `folder`/`name`. Raises ValueError in one line if it is missing or no JSON table."""
    file = Path(folder) / name
    try:
        said = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror or error}); put it beside the weights"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({line(error)}); download it again") from error
    if not isinstance(said, dict):
        raise ValueError(f"{file} holds no settings, but a {type(said).__name__}; download it again")
    return said


def _hub() -> Any:
    for part in ("constants", "errors"):
        need(f"huggingface_hub.{part}", "hf")
    return need("huggingface_hub", "hf")


@contextmanager
def _refusing(name: str, repository: str) -> Iterator[None]:
    """Say in one line what went wrong between here and the hub."""
    hub = _hub()
    errors = hub.errors
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{name} is neither a folder nor a name on the hub; write hf:ORG/NAME") from error
    except errors.GatedRepoError as error:
        page = f"https://huggingface.co/{repository}"
        raise ValueError(
            f"{name} is gated; accept its terms at {page} and log in (`hf auth login`)"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ValueError(
            f"{name} is not on the hub, or private; check the name, or log in (`hf auth login`)"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{name}: {repository} has no such revision; check what follows the @") from error
    except errors.LocalEntryNotFoundError as error:
        if hub.constants.HF_HUB_OFFLINE:
            remedy = "HF_HUB_OFFLINE is set; unset it, or fetch it once online"
        else:
            remedy = f"the hub cannot be reached ({line(error.__cause__ or error)}); check the network"
        raise ValueError(f"{name} is not (wholly) in the cache, and {remedy}") from error
    except errors.EntryNotFoundError as error:
        raise ValueError(
            f"{name} lacks a file that it should have ({line(error)}); choose another"
        ) from error
    except Exception as error:  # whatever the network library of the day raises
        raise ValueError(f"{name} cannot be fetched ({line(error)}); try again") from error


def _choice(names: list[str]) -> str:
    return f"there is {', '.join(names)}" if names else "`timm.list_pretrained()` lists what there is"
