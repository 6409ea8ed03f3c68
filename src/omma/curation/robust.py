"""Medians and deviations that a few faulty images do not move."""

import numpy as np
from jaxtyping import Float

FEW = 20  # images below which a collection says too little of what is usual in it


def spread(values: Float[np.ndarray, "n"]) -> tuple[float, float]:
    """Median, and 1.4826 times the median absolute deviation, which is a normal distribution's deviation."""
    middle = float(np.median(values))
    return middle, 1.4826 * float(np.median(np.abs(values - middle)))


def deviations(values: Float[np.ndarray, "n"], least: float) -> Float[np.ndarray, "n"]:
    """Robust deviations that each value lies above the median (modified z-score, Iglewicz & Hoaglin 1993).

    least: the smallest deviation to divide by, since over half of the values may be equal.
    """
    middle, deviation = spread(values)
    return (values - middle) / max(deviation, least)
