"""Commands that use a model: `omma embed` and `omma export`."""

from typing import Any

from rich.console import Console

from omma.cli.shared import Path_


def embed(
    model: Path_,
    images: Path_,
    out: str,
    allow_partial: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> int:
    """Write a table of feature vectors: path, label where there is one, vector.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        images: As for pretrain.
        out: The .parquet file to write.
        allow_partial: Take weights that lack many of the network's parameters too.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
    """
    from omma.device import keep_memory
    from omma.verbs.embed import embed as verb

    keep_memory()

    result = verb(model, images, out, allow_partial=allow_partial, device=device, precision=precision)
    console = Console(highlight=False, soft_wrap=True)
    for line in result.notes:
        console.print(line, markup=False)
    console.print(f"{result.rows:,} vectors of {result.dim} dimensions in {out}")
    for path, reason in result.bad[:5]:
        console.print(f"skipped {path}: {reason}", markup=False)
    if len(result.bad) > 5:
        console.print(f"... and {len(result.bad) - 5:,} more")
    return 0


def export(
    model: Path_, format: str, out: str | None = None, images: str | None = None, allow_partial: bool = False
) -> int:
    """Write a model for other tools; it is read back by them and compared before it is called done.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        format: safetensors, timm, hf (transformers), onnx or torch (torch.export).
        out: File (.onnx, .pt2) or folder to write; by default in the run folder.
        images: Images to compare on, as for pretrain; by default those that it was trained on.
        allow_partial: Take weights that lack many of the network's parameters too.
    """
    from omma.device import keep_memory
    from omma.verbs.export import export as verb

    keep_memory()

    chosen: Any = format  # the verb refuses what does not exist
    result = verb(model, chosen, out, images=images, allow_partial=allow_partial)
    console = Console(highlight=False, soft_wrap=True)
    said = f"{result.difference:.2g}, where features reach {result.scale:.2g}"
    console.print(f"written to {result.path}", markup=False)
    console.print(f"largest difference {said}; {result.compared}", markup=False)
    for note in result.notes:
        console.print(note, markup=False)
    return 0
