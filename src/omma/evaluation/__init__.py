"""Features and labels in, figures with intervals out."""

from collections.abc import Sequence

NAMES = {  # of the protocols, in tables
    "knn": "k-NN",
    "linear": "linear probe",
    "ridge": "ridge probe",
    "classifier": "classifier",
    "zeroshot": "zero-shot",
    "retrieval": "",  # their metrics say enough
    "image-retrieval": "",
}
PROTOCOLS = tuple(NAMES)
METRICS = ("accuracy", "f1", "ap", "calibration")


def check_protocols(names: Sequence[str]) -> None:
    """Raise ValueError for a name that is no protocol."""
    if unknown := [name for name in names if name not in PROTOCOLS]:
        raise ValueError(f"protocol {unknown[0]!r}: choose among {', '.join(PROTOCOLS)}")


def metric_groups(names: Sequence[str]) -> tuple[str, ...]:
    """The groups of metrics of these names; "all" is all of them. Raises ValueError for an unknown name."""
    if unknown := [name for name in names if name not in (*METRICS, "all")]:
        raise ValueError(f"metrics {unknown[0]!r}: choose among {', '.join(METRICS)}, all")
    return METRICS if "all" in names else tuple(dict.fromkeys(names))
