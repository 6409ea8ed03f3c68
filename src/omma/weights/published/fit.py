"""Load a recognised network into an encoder of perhaps another image size, patch, channels or tokens."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omma.backbones.layers import relative
from omma.core.protocols import Backbone
from omma.ops.patches import resample_kernel
from omma.ops.positions import resample
from omma.weights.published.families import TOKENS
from omma.weights.published.recognise import Recognised
from omma.weights.published.report import Report, percent

LEAST = 0.95  # of an encoder's parameters
TABLE = "relative_position_bias_table"
PATCHES = "patch_embed.proj.weight"
# The last norm, before the pooling or after it.
NORMS = ("norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias")


@dataclass(frozen=True)
class Plan:
    """What an encoder of some shape will get. wrong: why it should not, in words; empty where all is well."""

    values: dict[str, Tensor]
    report: Report
    wrong: str

    def check(self, allow_partial: bool) -> None:
        """Raises ValueError where it should be refused."""
        source = self.report.source
        if self.wrong and not allow_partial:
            raise ValueError(f"{source} does not fit {self.report.name}: {self.wrong}")
        for name, x in self.values.items():
            suspect = x.is_floating_point() and not x.sum().isfinite()  # the sum is quick
            if suspect and not x.isfinite().all():
                raise ValueError(f"{source} is damaged: {name} has values that are not finite")

    def load(self, encoder: Backbone) -> None:
        """An encoder without values (on the meta device) takes the tensors themselves."""
        blank = any(p.is_meta for p in encoder.parameters())
        assert not (blank and self.report.missing), "an encoder without values, and none for some of it"
        encoder.load_state_dict(self.values, strict=False, assign=blank)


def fit(recognised: Recognised, encoder: Backbone, allow_partial: bool = False) -> Report:
    """Fill the encoder's parameters with those of the file; what became of each is reported.

    Positions and relative biases are interpolated to the encoder's grid, the patch embedding's kernel is
    resampled to its patch and spread over its channels. Tokens may be more or fewer.
    Raises ValueError in one line, and changes nothing, where less than 95 % of the encoder's parameters would
    get values, where a tensor has a wrong shape, or where part of the file's network has no place: unless
    `allow_partial`. Values that are not finite are always refused.
    """
    found = plan(recognised, encoder)
    found.check(allow_partial)
    found.load(encoder)
    return found.report


def plan(recognised: Recognised, encoder: Backbone) -> Plan:
    """As `fit`, without loading; of the encoder only names and shapes count."""
    wanted = encoder.state_dict()
    draft = _Draft(
        dict(recognised.tensors), dict(recognised.how), dict(recognised.origin), encoder.first_layers
    )
    _norms(draft, wanted)
    _tokens(draft, recognised, encoder, wanted)
    values: dict[str, Tensor] = {}
    wrong: list[str] = []
    for name, target in wanted.items():
        if name not in draft.given:
            continue
        x = draft.adapted(name, target)
        if x.shape != target.shape:
            wrong.append(f"{name} has shape {list(x.shape)}, not {list(target.shape)}")
        elif x.is_floating_point() != target.is_floating_point():
            wrong.append(f"{name} holds {x.dtype}; quantised weights cannot be read")
        else:
            values[name] = x.to(target.dtype, copy=True, memory_format=torch.contiguous_format)
    homeless = [n for n in draft.given if n not in wanted and n not in (*TOKENS, *NORMS)]
    report = draft.report(recognised, encoder, values)
    return Plan(values, report, _reason(report, wrong, homeless, recognised))


def _reason(report: Report, wrong: list[str], homeless: list[str], recognised: Recognised) -> str:
    reasons: list[str] = []
    if wrong:
        reasons.append(wrong[0] + (f" ({len(wrong) - 1} more like it)" if len(wrong) > 1 else ""))
    if homeless:
        reasons.append(f"{len(homeless)} of its tensors have no place there ({', '.join(homeless[:3])})")
    if report.share < LEAST:
        lacking = ", ".join(report.missing[:3])
        reasons.append(f"only {percent(report.share)} of the encoder's parameters are in it (not {lacking})")
    if not reasons:
        return ""
    held = recognised.spec["name"]
    remedy = "is it whole?" if held == report.name else f"it holds {held}: choose that model"
    return f"{'; '.join(reasons)}; {remedy} (allow_partial takes what fits)"


@dataclass
class _Draft:
    """The file's tensors on their way into an encoder."""

    given: dict[str, Tensor]
    how: dict[str, str]
    origin: dict[str, tuple[str, ...]]
    first: tuple[str, ...]  # layers that read the image
    interpolated: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    details: Counter[str] = field(default_factory=Counter)  # in words

    def adapted(self, name: str, target: Tensor) -> Tensor:
        """The tensor in the shape of the target where it can be had; else as it is."""
        x = self.given[name]
        if name in self.first and x.ndim == target.ndim == 4:
            old, new = x.shape[1], target.shape[1]
            if old != new:
                x = inflated(x, new)
                self.inflated.append(name)
                self.details[f"first layer spread over {new} channels instead of {old}"] += 1
            old, new = x.shape[2], target.shape[2]
            if old != new and name == PATCHES:
                x = resample_kernel(x, new)
                self.interpolated.append(name)
                self.details[f"patch resampled from {old} to {new} px"] += 1
        elif (
            name.endswith(TABLE) and x.ndim == 2 and x.shape[1:] == target.shape[1:] and len(x) != len(target)
        ):
            (old, extra), (new, wanted) = _window(len(x)), _window(len(target))
            if old and new and extra == wanted:
                x = relative.resized(x, (old, old), (new, new), extra)
                self.interpolated.append(name)
                self.details[f"relative biases interpolated {old}x{old} -> {new}x{new}"] += 1
        return x

    def report(self, recognised: Recognised, encoder: Backbone, values: Mapping[str, Tensor]) -> Report:
        changed = {*self.interpolated, *self.inflated}
        converted = [name for name in values if name in self.how and name not in changed]
        used = {raw for name in values for raw in self.origin[name]}
        unused = [raw for origin in self.origin.values() for raw in origin if raw not in used]
        kinds = Counter(self.how[name] for name in converted)
        details = [f"{n} converted ({_counted(kinds)})" for n in [len(converted)] if n]
        details += [words + (f" ({n})" if n > 1 else "") for words, n in self.details.items()]
        sizes = {name: p.numel() for name, p in encoder.named_parameters()}
        return Report(
            name=encoder.name,
            source=recognised.source,
            dialect=recognised.dialect,
            matched=tuple(n for n in values if n not in self.how and n not in changed),
            converted=tuple(converted),
            interpolated=tuple(self.interpolated),
            inflated=tuple(self.inflated),
            missing=tuple(n for n in encoder.state_dict() if n not in values),
            left=tuple(dict.fromkeys((*unused, *recognised.left))),
            parameters=sum(sizes.values()),
            given=sum(n for name, n in sizes.items() if name in values),
            details=tuple(details),
            notes=recognised.notes,
        )


def inflated(kernel: Tensor, channels: int) -> Tensor:
    """A first layer's kernel [d, c, p, p] for n channels: the mean over its own, repeated, times c / n.

    To an image whose channels are all equal it answers as before; for one channel it is the sum.
    """
    c = kernel.shape[1]
    return kernel.float().mean(1, keepdim=True).mul(c / channels).repeat(1, channels, 1, 1)


def _window(entries: int) -> tuple[int, int]:
    """Rows of a table's grid, and its entries beside distances: 3 for a class token. 0 where it is none."""
    for extra in (0, 3):
        side = math.isqrt(max(entries - extra, 0))
        if side % 2 and side**2 == entries - extra:
            return (side + 1) // 2, extra
    return 0, 0


def _norms(draft: _Draft, wanted: Mapping[str, Tensor]) -> None:
    """The last norm serves the encoder where it has it: before the pooling or after."""
    for here, there in (("norm", "fc_norm"), ("fc_norm", "norm")):
        for p in ("weight", "bias"):
            old, new = f"{here}.{p}", f"{there}.{p}"
            if old in draft.given and old not in wanted and new in wanted and new not in draft.given:
                draft.given[new], draft.origin[new] = draft.given.pop(old), draft.origin.pop(old)
                draft.how[new] = f"{here} as {there}"


def _tokens(draft: _Draft, recognised: Recognised, encoder: Backbone, wanted: Mapping[str, Tensor]) -> None:
    """Positions for the encoder's grid and tokens; a token that has none there takes its own into itself."""
    given = draft.given
    rows: dict[str, Tensor] = {}
    if recognised.front:
        tokens = [name for name in TOKENS if name in given]
        counts = [given[name].shape[1] for name in tokens]
        rows = dict(zip(tokens, given["pos_embed"][:, : sum(counts)].split(counts, 1), strict=True))
    name = "reg_token"
    if name in given and name in wanted and given[name].shape[1] != wanted[name].shape[1]:
        del given[name]  # another number of registers is another set of them
        rows.pop(name, None)
    if "pos_embed" not in given or "pos_embed" not in wanted or recognised.grid is None:
        return
    size = encoder.image_size
    assert isinstance(size, int)
    home, grid = recognised.grid, encoder.grid(size, size)
    own = [name for name in TOKENS if name in wanted]
    before = wanted["pos_embed"].shape[1] - grid[0] * grid[1]
    if before == 0:
        own = []
    elif before != sum(wanted[name].shape[1] for name in own):
        return  # positions of another kind
    if grid == home and own == list(rows):
        return
    for name, row in rows.items():
        if name not in own and name in wanted and row.any():
            given[name] = given[name] + row
            draft.how[name] = "its position added"
    places = given["pos_embed"]
    dim = places.shape[2]
    front = [rows[n] if n in rows else places.new_zeros(1, wanted[n].shape[1], dim) for n in own]
    given["pos_embed"] = torch.cat([*front, resample(places[:, recognised.front :], home, grid)], 1)
    if own != list(rows):
        draft.how["pos_embed"] = "rows for other tokens"
    if grid != home:
        draft.interpolated.append("pos_embed")
        draft.details[f"positions interpolated {home[0]}x{home[1]} -> {grid[0]}x{grid[1]}"] += 1


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in kinds.items())
