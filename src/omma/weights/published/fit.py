"""Load a recognised network into an encoder, whose image size, patch, channels and tokens may differ."""

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

MIN_SHARE = 0.95  # of an encoder's parameters, below which a file is refused
TABLE = "relative_position_bias_table"
PATCHES = "patch_embed.proj.weight"
# The last norm stands before the pooling or after it.
NORMS = ("norm.weight", "norm.bias", "fc_norm.weight", "fc_norm.bias")


@dataclass(frozen=True)
class Assignment:
    """Values for an encoder's parameters. problem: why they do not fit, in words; empty if they do."""

    values: dict[str, Tensor]
    report: Report
    problem: str

    def check(self, allow_partial: bool) -> None:
        """Raise ValueError for a problem (unless partial weights are allowed) or values not finite."""
        source = self.report.source
        if self.problem and not allow_partial:
            raise ValueError(f"{source} does not fit {self.report.name}: {self.problem}")
        for name, x in self.values.items():
            suspect = x.is_floating_point() and not x.sum().isfinite()  # the sum is a cheap first test
            if suspect and not x.isfinite().all():
                raise ValueError(f"{source} is damaged: {name} has values that are not finite")

    def load(self, encoder: Backbone) -> None:
        """Load the values; an encoder on the meta device takes over the tensors themselves."""
        on_meta = any(p.is_meta for p in encoder.parameters())
        assert not (on_meta and self.report.missing), "an encoder on the meta device needs all its values"
        encoder.load_state_dict(self.values, strict=False, assign=on_meta)


def fit(recognised: Recognised, encoder: Backbone, allow_partial: bool = False) -> Report:
    """Fill the encoder's parameters from the file and report what became of each tensor.

    Positions and relative biases are interpolated to the encoder's grid; the patch embedding's kernel is
    resampled to its patch size and converted to its channels. The number of tokens may differ.
    Raises a one-line ValueError and changes nothing if less than 95 % of the encoder's parameters would be
    filled, a tensor has a wrong shape, or part of the file's network is not in the encoder; `allow_partial`
    accepts all three. Values that are not finite are always refused.
    """
    assignment = assign(recognised, encoder)
    assignment.check(allow_partial)
    assignment.load(encoder)
    return assignment.report


def assign(recognised: Recognised, encoder: Backbone) -> Assignment:
    """`fit` without loading; only the names and shapes of the encoder's parameters are used."""
    targets = encoder.state_dict()
    conversion = _Conversion(
        dict(recognised.tensors), dict(recognised.conversions), dict(recognised.origin), encoder.first_layers
    )
    _norms(conversion, targets)
    _tokens(conversion, recognised, encoder, targets)
    values: dict[str, Tensor] = {}
    mismatches: list[str] = []
    for name, target in targets.items():
        if name not in conversion.tensors:
            continue
        x = conversion.adapt(name, target)
        if x.shape != target.shape:
            mismatches.append(f"{name} has shape {list(x.shape)}, not {list(target.shape)}")
        elif x.is_floating_point() != target.is_floating_point():
            mismatches.append(f"{name} holds {x.dtype}; quantised weights cannot be read")
        else:
            values[name] = x.to(target.dtype, copy=True, memory_format=torch.contiguous_format)
    unplaced = [n for n in conversion.tensors if n not in targets and n not in (*TOKENS, *NORMS)]
    report = conversion.report(recognised, encoder, values)
    return Assignment(values, report, _problem(report, mismatches, unplaced, recognised))


def _problem(report: Report, mismatches: list[str], unplaced: list[str], recognised: Recognised) -> str:
    """Why the file does not fit, with a remedy; empty if it fits."""
    reasons: list[str] = []
    if mismatches:
        more = f" ({len(mismatches) - 1} more like it)" if len(mismatches) > 1 else ""
        reasons.append(mismatches[0] + more)
    if unplaced:
        reasons.append(
            f"{len(unplaced)} of its tensors have no counterpart there ({', '.join(unplaced[:3])})"
        )
    if report.share < MIN_SHARE:
        examples = ", ".join(report.missing[:3])
        reasons.append(f"only {percent(report.share)} of the encoder's parameters are in it (not {examples})")
    if not reasons:
        return ""
    file_model = recognised.spec["name"]
    remedy = "is it complete?" if file_model == report.name else f"it holds {file_model}: choose that model"
    return f"{'; '.join(reasons)}; {remedy} (allow_partial takes what fits)"


@dataclass
class _Conversion:
    """The file's tensors while they are converted to an encoder's shapes."""

    tensors: dict[str, Tensor]
    conversions: dict[str, str]
    origin: dict[str, tuple[str, ...]]
    first_layers: tuple[str, ...]  # layers that read the image
    interpolated: list[str] = field(default_factory=list)
    inflated: list[str] = field(default_factory=list)
    details: Counter[str] = field(default_factory=Counter)  # sentences for the report, counted

    def adapt(self, name: str, target: Tensor) -> Tensor:
        """The tensor converted to the target's shape where omma knows how; otherwise unchanged."""
        x = self.tensors[name]
        if name in self.first_layers and x.ndim == target.ndim == 4:
            old, new = x.shape[1], target.shape[1]
            if old != new:
                x = inflate(x, new)
                self.inflated.append(name)
                self.details[f"first layer converted from {old} to {new} channels"] += 1
            old, new = x.shape[2], target.shape[2]
            if old != new and name == PATCHES:
                x = resample_kernel(x, new)
                self.interpolated.append(name)
                self.details[f"patch resampled from {old} to {new} px"] += 1
        elif (
            name.endswith(TABLE) and x.ndim == 2 and x.shape[1:] == target.shape[1:] and len(x) != len(target)
        ):
            (old, extra), (new, target_extra) = _window(len(x)), _window(len(target))
            if old and new and extra == target_extra:
                x = relative.resized(x, (old, old), (new, new), extra)
                self.interpolated.append(name)
                self.details[f"relative biases interpolated {old}x{old} -> {new}x{new}"] += 1
        return x

    def report(self, recognised: Recognised, encoder: Backbone, values: Mapping[str, Tensor]) -> Report:
        """What became of each tensor, for the values that the encoder gets."""
        changed = {*self.interpolated, *self.inflated}
        converted = [name for name in values if name in self.conversions and name not in changed]
        used = {raw for name in values for raw in self.origin[name]}
        unused = [raw for origin in self.origin.values() for raw in origin if raw not in used]
        kinds = Counter(self.conversions[name] for name in converted)
        details = [f"{n} converted ({_counted(kinds)})" for n in [len(converted)] if n]
        details += [words + (f" ({n})" if n > 1 else "") for words, n in self.details.items()]
        sizes = {name: p.numel() for name, p in encoder.named_parameters()}
        return Report(
            name=encoder.name,
            source=recognised.source,
            dialect=recognised.dialect,
            matched=tuple(n for n in values if n not in self.conversions and n not in changed),
            converted=tuple(converted),
            interpolated=tuple(self.interpolated),
            inflated=tuple(self.inflated),
            missing=tuple(n for n in encoder.state_dict() if n not in values),
            unused=tuple(dict.fromkeys((*unused, *recognised.unused))),
            parameters=sum(sizes.values()),
            filled=sum(n for name, n in sizes.items() if name in values),
            details=tuple(details),
            notes=recognised.notes,
        )


def inflate(kernel: Tensor, channels: int) -> Tensor:
    """Convert a kernel [d, c, p, p] to n input channels: the mean over its channels, repeated, times c / n.

    The response to an image whose channels are all equal stays the same.
    """
    c = kernel.shape[1]
    return kernel.float().mean(1, keepdim=True).mul(c / channels).repeat(1, channels, 1, 1)


def _window(entries: int) -> tuple[int, int]:
    """A relative bias table's window side and extra entries (3 with a class token); else (0, 0)."""
    for extra in (0, 3):
        side = math.isqrt(max(entries - extra, 0))
        if side % 2 and side**2 == entries - extra:
            return (side + 1) // 2, extra
    return 0, 0


def _norms(conversion: _Conversion, targets: Mapping[str, Tensor]) -> None:
    """Use the file's last norm as the encoder's, whether either stands before the pooling or after it."""
    tensors, origin = conversion.tensors, conversion.origin
    for here, there in (("norm", "fc_norm"), ("fc_norm", "norm")):
        for p in ("weight", "bias"):
            old, new = f"{here}.{p}", f"{there}.{p}"
            if old in tensors and old not in targets and new in targets and new not in tensors:
                tensors[new], origin[new] = tensors.pop(old), origin.pop(old)
                conversion.conversions[new] = f"{here} as {there}"


def _tokens(
    conversion: _Conversion, recognised: Recognised, encoder: Backbone, targets: Mapping[str, Tensor]
) -> None:
    """Convert positions to the encoder's grid and tokens.

    A token whose position has no row in the encoder gets its position added to itself.
    """
    tensors = conversion.tensors
    rows: dict[str, Tensor] = {}
    if recognised.prefix_rows:
        tokens = [name for name in TOKENS if name in tensors]
        counts = [tensors[name].shape[1] for name in tokens]
        rows = dict(zip(tokens, tensors["pos_embed"][:, : sum(counts)].split(counts, 1), strict=True))
    name = "reg_token"
    if name in tensors and name in targets and tensors[name].shape[1] != targets[name].shape[1]:
        del tensors[name]  # registers of another number cannot be converted: the encoder keeps its own
        rows.pop(name, None)
    if "pos_embed" not in tensors or "pos_embed" not in targets or recognised.grid is None:
        return
    size = encoder.image_size
    assert isinstance(size, int)
    file_grid, grid = recognised.grid, encoder.grid(size, size)
    own = [name for name in TOKENS if name in targets]
    before = targets["pos_embed"].shape[1] - grid[0] * grid[1]
    if before == 0:
        own = []
    elif before != sum(targets[name].shape[1] for name in own):
        return  # pos_embed has another layout
    if grid == file_grid and own == list(rows):
        return
    for name, row in rows.items():
        if name not in own and name in targets and row.any():
            tensors[name] = tensors[name] + row
            conversion.conversions[name] = "its position added"
    positions = tensors["pos_embed"]
    dim = positions.shape[2]
    prefix = [rows[n] if n in rows else positions.new_zeros(1, targets[n].shape[1], dim) for n in own]
    how = recognised.spec.get("interpolation", "antialias")
    patches = resample(positions[:, recognised.prefix_rows :], file_grid, grid, how)
    tensors["pos_embed"] = torch.cat([*prefix, patches], 1)
    if own != list(rows):
        conversion.conversions["pos_embed"] = "rows for other tokens"
    if grid != file_grid:
        conversion.interpolated.append("pos_embed")
        conversion.details[
            f"positions interpolated {file_grid[0]}x{file_grid[1]} -> {grid[0]}x{grid[1]}"
        ] += 1


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in kinds.items())
