"""Commands that use a model: `omma embed` and `omma export`."""

from typing import Any

from omma.cli.shared import LabelDepth, Path_
from omma.cli.shared import out as echo
from omma.core import launcher


def embed(
    model: Path_,
    images: Path_,
    out: str,
    allow_partial: bool = False,
    label_depth: LabelDepth = None,
    device: str = "auto",
    precision: str = "auto",
    engine: str = "local",
) -> int:
    """Write a table of feature vectors: path, label (if there is one), vector.

    The same command continues where an earlier one was stopped. `torchrun -m omma embed ...` divides the
    images among its processes.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        images: Images, in any form that pretrain accepts.
        out: The .parquet file to write.
        allow_partial: Accept weights that lack many of the network's parameters.
        label_depth: Folder that names the class, as for evaluate.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
        engine: local, or ray to use the machines of a Ray cluster.
    """
    from omma.core.device import keep_memory, share_cores
    from omma.verbs.embed import embed as verb

    keep_memory()
    share_cores()

    result = verb(
        model, images, out, allow_partial=allow_partial, label_depth=label_depth, device=device,
        precision=precision, engine=engine,
    )  # fmt: skip
    if launcher.ranks().rank:  # only one process prints
        return 0
    if result.resumed:
        echo.print(f"continued after {result.resumed:,} images that were embedded before")
    for line in result.notes:
        echo.print(line, markup=False)
    echo.print(f"{result.rows:,} vectors of {result.dim} dimensions in {out}")
    for path, reason in result.bad[:5]:
        echo.print(f"skipped {path}: {reason}", markup=False)
    if len(result.bad) > 5:
        echo.print(f"... and {len(result.bad) - 5:,} more")
    return 0


def export(
    model: Path_, format: str, out: str | None = None, images: str | None = None, allow_partial: bool = False
) -> int:
    """Export a model for other tools; they read it back, and its features are compared with omma's.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        format: safetensors, timm, hf (transformers), onnx or torch (torch.export).
        out: File (.onnx, .pt2) or folder to write; by default in the run folder.
        images: Images for the comparison; by default those that the model was trained on.
        allow_partial: Accept weights that lack many of the network's parameters.
    """
    from omma.core.device import keep_memory
    from omma.verbs.export import export as verb

    keep_memory()

    format_: Any = format  # the verb refuses unknown formats
    result = verb(model, format_, out, images=images, allow_partial=allow_partial)
    difference = f"{result.difference:.2g}, where features reach {result.scale:.2g}"
    echo.print(f"written to {result.path}", markup=False)
    echo.print(f"largest difference {difference}; {result.compared}", markup=False)
    for note in result.notes:
        echo.print(note, markup=False)
    return 0
