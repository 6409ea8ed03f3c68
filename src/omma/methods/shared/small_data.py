"""What small recipes share."""

from typing import Any

# chosen on hold-outs of small collections (docs/benchmarks.md, "Muon")
MUON: dict[str, Any] = {"optimizer": "muon", "momentum": 0.9, "matrix_lr": 8.0}
