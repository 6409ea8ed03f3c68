"""What a run writes down as it goes: metrics.jsonl, and the same for TensorBoard and a tracker."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Self

from omma.pretraining.folder import RunFolder
from omma.pretraining.tracker import Status, Tracked


class MetricsLog:
    """Lines of metrics; only the primary process writes them. As a context it is closed with how it ended."""

    ended = False  # has the run reached its end?

    def __init__(self, folder: RunFolder, primary: bool, tracked: Tracked | None = None) -> None:
        self.folder, self.primary, self.tracked = folder, primary, tracked
        self.writer: Any = None
        if primary and find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter  # takes a while to import

            self.writer = SummaryWriter(str(folder.path))

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it has `event` and `step`."""
        if self.primary:
            self.folder.log(line)
        if self.tracked is not None:
            self.tracked.write(line)
        if self.writer is None:
            return
        for name, value in line.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{line['event']}/{name}", value, line["step"])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        failed = error is not None and error is not KeyboardInterrupt
        self.close("failed" if failed else "finished" if self.ended else "stopped")

    def close(self, status: Status) -> None:
        """Write what is buffered."""
        if self.tracked is not None:
            self.tracked.close(status)
        if self.writer is not None:
            self.writer.close()
