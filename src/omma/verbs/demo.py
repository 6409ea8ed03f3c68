"""`omma demo`: what it trains on, and how."""

from pathlib import Path

import numpy as np

from omma.data.sources import demo_digits

METHOD = "simclr"
# digits differ in shape alone, so colours may be thrown about and crops must show all of a digit
OPTIONS = {"colour": "1.0", "scale": "0.75,1.0"}


def images(out: str | Path, seed: int = 0) -> Path:
    """The array file of labelled digits beside the run folder `out`; made if it is not there."""
    file = Path(out).with_name(Path(out).name + "-digits.npz")
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        made = demo_digits.make_digits(seed=seed)
        np.savez(
            file, x_train=made.train, y_train=made.train_labels, x_test=made.test, y_test=made.test_labels
        )
    return file
