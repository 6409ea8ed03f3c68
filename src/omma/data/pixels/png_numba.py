"""PNG's filters, compiled by Numba: each byte depends on the one before, which tensors cannot express."""

import numpy as np
from jaxtyping import UInt8

from omma.core.compiled import compiled


@compiled()
def unfilter(rows: UInt8[np.ndarray, "h n"], step: int) -> None:
    """Undo the filters of all rows, in place [PNG, third edition, 9.2]; `step` bytes a pixel.

    The first byte of a row is its filter: 0 none, 1 left, 2 above, 3 their mean, 4 Paeth's choice.
    """
    for y in range(rows.shape[0]):
        kind = rows[y, 0]
        if kind == 0:
            continue
        for x in range(1, rows.shape[1]):
            left = int(rows[y, x - step]) if x > step else 0
            above = int(rows[y - 1, x]) if y > 0 else 0
            corner = int(rows[y - 1, x - step]) if y > 0 and x > step else 0
            if kind == 1:
                predicted = left
            elif kind == 2:
                predicted = above
            elif kind == 3:
                predicted = (left + above) // 2
            else:
                to_left = abs(above - corner)
                to_above = abs(left - corner)
                to_corner = abs(left + above - 2 * corner)
                if to_left <= to_above and to_left <= to_corner:
                    predicted = left
                elif to_above <= to_corner:
                    predicted = above
                else:
                    predicted = corner
            rows[y, x] = (int(rows[y, x]) + predicted) & 255
