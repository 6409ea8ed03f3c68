"""Commands that use a model: `omma embed`."""

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
        allow_partial: Take weights of which many find no place too.
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
