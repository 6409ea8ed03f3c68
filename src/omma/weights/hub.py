"""Download published weights from the Hugging Face hub, directly or by timm's names.

huggingface_hub decides where the cache is and whether the network may be used (HF_HOME, HF_HUB_OFFLINE).
"""

import difflib
import json
import logging
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies

from torch import Tensor

from omma.core.errors import line, need
from omma.weights.read_file import WEIGHTS, read_index

PATIENCE = 5.0  # seconds in which the hub must answer
CONFIG, PREPROCESSOR, MERGES = "config.json", "preprocessor_config.json", "merges.txt"


class LibraryWeights(NamedTuple):
    """The weights of a network of timm or torchvision."""

    tensors: dict[str, Tensor]  # without the classifier
    config: dict[str, Any]  # timm's pretrained_cfg, or what torchvision says in those words
    architecture: str
    heads: Mapping[str, Tensor] = MappingProxyType({})  # the classifier's tensors, by their names in the file
    channels: int = 3
    image_size: int | None = None  # that its positions are made for; None: the input size of `config`
    arguments: str = ""  # JSON of the further arguments that the network was made with
    library: str = "timm"
    classes: tuple[str, ...] = ()  # name of each of the classifier's rows
    notes: tuple[str, ...] = ()  # how the tensors were found in the file
    assumed: str = ""  # whose preprocessing `config` has, where none lies beside the weights

    @property
    def name(self) -> str:
        """As `backbones.build` takes it."""
        return f"{self.library}:{self.architecture}"

    def spec(self) -> dict[str, Any]:
        """Arguments of `backbones.build`."""
        size = int((self.config.get("input_size") or (3, 224, 224))[-1])
        spec = {"name": self.name, "image_size": self.image_size or size, "channels": self.channels}
        return {**spec, **({"arguments": self.arguments} if self.arguments else {})}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "LibraryWeights":
        """The same with a file's tensors, of which the classifier's are recognised by their names."""
        classifier = self.config.get("classifier") or ()
        names = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        starts = tuple(f"{name}." for name in names)
        heads = {name: x for name, x in tensors.items() if starts and name.startswith(starts)}
        return self._replace(tensors={n: x for n, x in tensors.items() if n not in heads}, heads=heads)


def fetch_hf(name: str) -> Path:
    """Download a repository; returns the folder with config.json, weights and any preprocessor_config.json.

    name: `hf:ORG/NAME`, `hf:ORG/NAME@REVISION` (branch, tag or commit), or a local folder.
    Raises a one-line ValueError if the package, repository, file, login or network is missing.
    """
    path = name.removeprefix("hf:")
    if path and Path(path).is_dir():
        return Path(path)
    hub = _hub()
    repository, _, revision = path.partition("@")
    with _one_line_errors(name, repository):
        folder = Path(hub.hf_hub_download(repository, CONFIG, revision=revision or None)).parent
        commit = folder.name  # the branch may move while the other files are fetched
        with suppress(hub.errors.EntryNotFoundError):
            hub.hf_hub_download(repository, PREPROCESSOR, revision=commit)
        if "text_config" in read_config(folder):  # a text tower, which needs its tokenizer's merges
            with suppress(hub.errors.EntryNotFoundError):
                hub.hf_hub_download(repository, MERGES, revision=commit)
        weights = _weights(hub, repository, commit)
    if weights is None:
        raise ValueError(
            f"{name} has no {WEIGHTS[0]} or {WEIGHTS[2]}; download its weights and give their file"
        )
    if weights.suffix == ".json":
        shards = sorted(set(read_index(weights).values()))
        with _one_line_errors(name, repository):
            for shard in shards:
                hub.hf_hub_download(repository, shard, revision=commit)
    return folder


def _weights(hub: Any, repository: str, commit: str) -> Path | None:
    """The first of WEIGHTS in the repository (offline: in the cache); None if there is none."""
    not_cached = None
    for name in WEIGHTS:
        try:
            return Path(hub.hf_hub_download(repository, name, revision=commit))
        except hub.errors.LocalEntryNotFoundError as error:
            not_cached = error
        except hub.errors.EntryNotFoundError:
            continue
    if not_cached is not None:
        raise not_cached
    return None


def fetch_timm(name: str) -> LibraryWeights:
    """The pretrained network `timm:NAME.TAG`, or `timm:NAME` for timm's default tag.

    timm downloads and converts the weights. Raises a one-line ValueError for an unknown name (with similar
    ones) or tag, a network without published weights, and like `fetch_hf`.
    """
    timm = need("timm", "timm")
    timm_name = name.removeprefix("timm:")
    timm_name = timm.models.get_deprecated_models().get(timm_name) or timm_name
    architecture, _, tag = timm_name.partition(".")
    if not timm.is_model(architecture):
        similar = difflib.get_close_matches(architecture, timm.list_models(), 3)
        raise ValueError(f"{name}: timm has no {architecture}; {_suggestion(similar)}")
    available = [n for n in timm.list_pretrained(f"{architecture}*") if n.partition(".")[0] == architecture]
    if not available:
        raise ValueError(f"{name}: timm has no weights of {architecture}; choose another network")
    if tag and timm_name not in available:
        raise ValueError(f"{name}: timm has no weights {tag} of {architecture}; {_suggestion(available)}")
    repository = timm.models.get_pretrained_cfg_value(timm_name, "hf_hub_id") or timm_name
    with _one_line_errors(name, repository):
        network = timm.create_model(timm_name, pretrained=True)
    config: Any = network.pretrained_cfg
    return LibraryWeights({}, dict(config), architecture).with_tensors(network.state_dict())


def read_config(folder: str | Path, name: str = CONFIG) -> dict[str, Any]:
    """Read `folder`/`name`. Raises a one-line ValueError if it is missing or not a JSON object."""
    file = Path(folder) / name
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror or error}); put it beside the weights"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({line(error)}); download it again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds no settings, but a {type(config).__name__}; download it again")
    return config


def _hub() -> Any:
    for submodule in ("constants", "errors"):
        need(f"huggingface_hub.{submodule}", "hf")
    return need("huggingface_hub", "hf")


@contextmanager
def _one_line_errors(name: str, repository: str) -> Iterator[None]:
    """Turn the hub's errors into a one-line ValueError with a remedy."""
    hub = _hub()
    errors = hub.errors
    try:
        with _quiet(hub):
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
            remedy = (
                f"{hub.constants.ENDPOINT} cannot be reached; check the network, or give the weights' file"
            )
        raise ValueError(f"{name} is not (completely) in the cache, and {remedy}") from error
    except errors.EntryNotFoundError as error:
        raise ValueError(
            f"{name} lacks a file that it should have ({line(error)}); choose another"
        ) from error
    except Exception as error:  # network libraries raise errors of many types
        raise ValueError(f"{name} cannot be fetched ({line(error)}); try again") from error


@contextmanager
def _quiet(hub: Any) -> Iterator[None]:
    """Without the hub's log of each failed request; where it cannot be reached, with its cache alone.

    Its own way is to try each file for half a minute.
    """
    logger, constants = logging.getLogger("huggingface_hub"), hub.constants
    level, offline = logger.level, constants.HF_HUB_OFFLINE
    logger.setLevel(logging.CRITICAL)
    constants.HF_HUB_OFFLINE = offline or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        logger.setLevel(level)
        constants.HF_HUB_OFFLINE = offline


def _reachable(endpoint: str) -> bool:
    """Does anything listen at this address? Taken for granted behind a proxy, which alone knows."""
    address = urlsplit(endpoint)
    if getproxies().get(address.scheme) or address.hostname is None:
        return True
    port = address.port or {"http": 80}.get(address.scheme, 443)
    try:
        socket.create_connection((address.hostname, port), timeout=PATIENCE).close()
    except OSError:
        return False
    return True


def _suggestion(names: list[str]) -> str:
    return f"there is {', '.join(names)}" if names else "`timm.list_pretrained()` lists the names"
