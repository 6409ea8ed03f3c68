"""What a run writes down as it goes: metrics.jsonl, and the same numbers for TensorBoard."""

from collections.abc import Mapping
from typing import Any

from omma.pretraining.folder import RunFolder


class MetricsLog:
    """Lines of metrics; only the primary process writes them."""

    def __init__(self, folder: RunFolder, primary: bool) -> None:
        self.folder = folder
        self.writer: Any = None
        if primary:
            from torch.utils.tensorboard import SummaryWriter  # takes a while to import

            self.writer = SummaryWriter(str(folder.path))

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it has `event` and `step`."""
        if self.writer is None:
            return
        self.folder.log(line)
        for name, value in line.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{line['event']}/{name}", value, line["step"])

    def close(self) -> None:
        """Write what is buffered."""
        if self.writer is not None:
            self.writer.close()
