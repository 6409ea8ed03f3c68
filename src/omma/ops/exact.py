"""The exact nearest rows of many, from products in low precision and a bound on what these may hide.

The order of q.b over rows b is that of q.(b - c) for any c. Let c be the rows' mean, B = bf16(b - c) and
Q = bf16(q). A product Q.B, summed in fp32, differs from q.(b - c) by at most

    e = |q - Q| max|B| + |q| max|b - c - B| + d 2^-24 |Q| max|B|

(Cauchy-Schwarz; the last term is that of d additions in any order [Higham 2002, eq. 3.5]). The k-th best
exact product of the rows seen so far, t, is a lower bound of the final one, so a later row counts only if
Q.B >= t - q.c - e. Rounding keeps order, so scores may be compared after they are rounded to bf16. Few rows
pass; their products are computed in fp64 (`exact_numba.merge`). Nothing is left to chance, whatever the
vectors: where all are alike, all are computed in fp64, which takes longer.

Without bf16 units, on a GPU, and for small problems the scores are products in fp32, with their bound.
"""

import functools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from omma.core import device as devices
from omma.core.compiled import compiles

CPU = torch.device("cpu")
ROWS, QUERIES = 4096, 512  # a product at a time: its scores stay in the second-level cache
FIRST = 512  # rows of the first product, which most queries must look at closely
SCORES = 2**24  # in memory at a time, elsewhere
MORE = 16  # rows beyond k whose exact products are looked at first
SMALL = 2**24  # products up to which compiled loops do not pay
FEW = 16  # queries up to which they do not
SAMPLE = 4096  # rows for the mean
KEPT = 0.25  # share of the free memory that prepared rows may take


class Found(NamedTuple):
    """The best rows of each query."""

    similarities: Float[np.ndarray, "m k"]
    indices: Int[np.ndarray, "m k"]


class _Prepared(NamedTuple):
    """Rows less the mean, in bf16."""

    rows: Tensor
    norm: float  # largest of a row
    error: float  # largest norm of what rounding took from a row


class Base:
    """Rows to search among, in blocks that may be mapped from a disk.

    largest: an upper bound of the rows' norms, if it is known. device: where products are computed; vectors
    that are prepared for it are kept between searches while they take a quarter of its free memory.
    """

    def __init__(
        self,
        blocks: Sequence[Float[np.ndarray, "b d"]],
        largest: float | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.blocks = [block for block in blocks if len(block)]
        self.starts = np.cumsum([0, *(len(block) for block in self.blocks)])
        self.device = device
        self._largest = largest
        self._kept: dict[int, _Prepared | Tensor] = {}
        self._room = int(devices.memory(device) * KEPT) if self.blocks else 0

    def __len__(self) -> int:
        return int(self.starts[-1])

    @functools.cached_property
    def bf16(self) -> bool:
        """Are products of many queries taken in bf16?"""
        return _has_bf16()

    @functools.cached_property
    def largest(self) -> float:
        """An upper bound of the rows' norms."""
        if self._largest is not None:
            return self._largest
        return max(float(_tensor(block).norm(dim=1).max()) for block in self.blocks) * (1 + 1e-5)

    @functools.cached_property
    def centre(self) -> Float[Tensor, "d"]:
        """About the mean of the rows; any vector would do."""
        step = -(-len(self) // SAMPLE)
        return torch.cat([_tensor(block[::step]) for block in self.blocks]).mean(0)

    @torch.inference_mode()
    def nearest(
        self,
        queries: Float[np.ndarray, "m d"],
        k: int,
        among: Int[np.ndarray, "a"] | None = None,
        leave_out: Int[np.ndarray, "m"] | None = None,
    ) -> Found:
        """The k (at most as many as there are) rows of the largest inner product; of ties the lower row.

        among: the rows that count, ascending; None: all. leave_out: a row for each query that does not.
        """
        count = len(self) if among is None else len(among)
        k = min(k, max(0, count - (leave_out is not None)))
        m = len(queries)
        if k == 0 or m == 0:
            return Found(np.zeros((m, k), np.float32), np.zeros((m, k), np.int64))
        own = np.full(m, -1, np.int64) if leave_out is None else leave_out.astype(np.int64)
        if self.device.type == "cpu" and m > FEW and m * count > SMALL and compiles():
            scores, rows = self._by_loops(queries, k, among, own)
        else:
            scores, rows = self._by_sorting(queries, k, among, own)
        return Found(scores.astype(np.float32), rows)

    def _parts(
        self, among: Int[np.ndarray, "a"] | None
    ) -> Iterator[tuple[int, Int[np.ndarray, "b"] | None, Int[np.ndarray, "b"]]]:
        """For each block: its number, which of its rows count (None: all), and their numbers."""
        for number, (start, end) in enumerate(zip(self.starts[:-1], self.starts[1:])):
            if among is None:
                yield number, None, np.arange(start, end)
                continue
            first, last = np.searchsorted(among, (start, end))
            if last - first == end - start:
                yield number, None, np.arange(start, end)
            elif last > first:
                yield number, among[first:last] - start, among[first:last]

    # ------------------------------------------------------------ many queries on a CPU
    def _by_loops(
        self, queries: np.ndarray, k: int, among: np.ndarray | None, own: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        from omma.ops import exact_numba  # Numba takes half a second to import

        m = len(queries)
        best = np.full((m, k), -np.inf), np.full((m, k), -1, np.int64)
        asked = _Asked.of(_tensor(queries), self.centre if self.bf16 else None)
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            for block, low, numbers in self._products(among):
                error = asked.error(low, self.largest)
                for at in range(0, m, QUERIES):
                    product = asked.rows[at : at + QUERIES] @ low.rows.T
                    scores = (product.view(torch.int16) if self.bf16 else product).numpy()
                    share = -(-len(scores) // threads)
                    waiting = []
                    for start in range(at, at + len(scores), share):
                        own_part = slice(start, min(start + share, at + len(scores)))
                        of_queries = (queries, error, asked.offset, own, *best)
                        parts = (array[own_part] for array in of_queries)
                        of_rows = (scores[start - at : own_part.stop - at], block, numbers)
                        waiting.append(pool.submit(exact_numba.merge, *of_rows, *parts))
                    for each in waiting:
                        each.result()
        return best

    def _products(
        self, among: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, _Prepared, Int[np.ndarray, "b"]]]:
        """Rows in fp32, the same as products take them, and their numbers, some thousand at a time."""
        size = FIRST
        for number, places, numbers in self._parts(among):
            block, low = self.blocks[number], self._prepared(number)
            at = 0
            while at < len(numbers):
                part = slice(at, at + size) if places is None else places[at : at + size]
                chosen = low._replace(rows=low.rows[part])
                yield np.ascontiguousarray(block[part], np.float32), chosen, numbers[at : at + size]
                at, size = at + size, ROWS

    def _prepared(self, number: int) -> _Prepared:
        if isinstance(kept := self._kept.get(number), _Prepared):
            return kept
        rows = _tensor(self.blocks[number])
        if not self.bf16:
            return _Prepared(rows, self.largest, 0.0)
        low, norm, error = torch.empty(rows.shape, dtype=torch.bfloat16), 0.0, 0.0
        for at in range(0, len(rows), ROWS):
            difference = rows[at : at + ROWS] - self.centre
            part = difference.bfloat16()
            low[at : at + ROWS] = part
            norm = max(norm, float(part.float().norm(dim=1).max()))
            error = max(error, float(difference.sub_(part).norm(dim=1).max()))
        prepared = _Prepared(low, norm * (1 + 1e-4), error * (1 + 1e-3) + 2**-23 * norm)
        self._keep(number, prepared, low.nbytes)
        return prepared

    def _keep(self, number: int, prepared: "_Prepared | Tensor", size: int) -> None:
        if size <= self._room:
            self._room -= size
            self._kept[number] = prepared

    # ------------------------------------------------------------ few queries, or another device
    def _by_sorting(
        self, queries: np.ndarray, k: int, among: np.ndarray | None, own: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best by fp32 and some more, compared in fp64; all rows where these may not be enough."""
        m, count = len(queries), len(self) if among is None else len(among)
        scores, rows = np.full((m, k), -np.inf), np.full((m, k), -1, np.int64)
        left, take = np.arange(m), min(k + 1 + MORE, count)
        while len(left):
            asked = _tensor(queries[left])
            near, index = self._best(asked, take, among)
            exact = self._exact(queries[left], index)
            exact[index == own[left, None]] = -np.inf
            order = np.lexsort((index, -exact))[:, :k]
            scores[left] = np.take_along_axis(exact, order, 1)
            rows[left] = np.take_along_axis(index, order, 1)
            error = _error_of_fp32(
                asked.norm(dim=1).double().numpy(), self.largest, asked.shape[1], self.device
            )
            sure = scores[left, -1] > near[:, -1] + error
            left = left[~sure] if take < count else left[:0]
            take = min(8 * take, count)
        return scores, rows

    def _best(
        self, asked: Float[Tensor, "m d"], take: int, among: np.ndarray | None
    ) -> tuple[Float[np.ndarray, "m t"], Int[np.ndarray, "m t"]]:
        """By fp32: scores, and numbers of rows."""
        asked = asked.to(self.device)
        near = torch.full((len(asked), 0), -torch.inf, device=self.device)
        index = torch.zeros((len(asked), 0), dtype=torch.int64, device=self.device)
        size = max(1, SCORES // max(1, len(asked)))
        for number, places, numbers in self._parts(among):
            block = self._moved(number)
            for at in range(0, len(numbers), size):
                part = slice(at, at + size) if places is None else torch.from_numpy(places[at : at + size])
                product = asked @ block[part].T
                values, order = product.topk(min(take, product.shape[1]), dim=1)
                found = torch.from_numpy(numbers[at : at + size]).to(self.device)[order]
                near, index = torch.cat([near, values], 1), torch.cat([index, found], 1)
                if near.shape[1] > take:
                    near, order = near.topk(take, dim=1)
                    index = index.gather(1, order)
        return near.double().cpu().numpy() if near.device.type != "mps" else near.cpu().double().numpy(), (
            index.cpu().numpy()
        )

    def _moved(self, number: int) -> Tensor:
        """A block on the device."""
        if self.device.type == "cpu":
            return _tensor(self.blocks[number])
        if isinstance(kept := self._kept.get(number), Tensor):
            return kept
        block = _tensor(self.blocks[number]).to(self.device)
        self._keep(number, block, block.nbytes)
        return block

    def _exact(self, queries: np.ndarray, index: np.ndarray) -> Float[np.ndarray, "m t"]:
        """Products in fp64 of each query with its rows, summed alike: equal rows have equal ones."""
        found = np.empty(index.shape)
        size = max(1, SCORES // 4 // (index.shape[1] * queries.shape[1]))
        for at in range(0, len(queries), size):
            numbers = index[at : at + size].ravel()
            rows = np.empty((len(numbers), queries.shape[1]), np.float32)
            block_of = np.searchsorted(self.starts, numbers, side="right") - 1
            for number in np.unique(block_of):
                own = np.flatnonzero(block_of == number)
                rows[own] = self.blocks[number][numbers[own] - self.starts[number]]
            asked = np.repeat(queries[at : at + size].astype(np.float64), index.shape[1], axis=0)
            found[at : at + size].ravel()[:] = (asked * rows).sum(1)
        return found


class _Asked(NamedTuple):
    """Queries as products take them, with what the bound needs of them."""

    rows: Tensor
    norm: Float[np.ndarray, "m"]
    rounding: Float[np.ndarray, "m"]  # norm of what rounding took
    offset: Float[np.ndarray, "m"]  # q.c

    @classmethod
    def of(cls, queries: Float[Tensor, "m d"], centre: Float[Tensor, "d"] | None) -> "_Asked":
        exact = queries.double()
        norm = exact.norm(dim=1).numpy()
        if centre is None:
            none = np.zeros(len(queries))
            return cls(queries, norm, none, none)
        low = queries.bfloat16()
        return cls(low, norm, (exact - low).norm(dim=1).numpy(), (exact @ centre.double()).numpy())

    def error(self, low: _Prepared, largest: float) -> Float[np.ndarray, "m"]:
        """e of the module's docstring, for rows of one block."""
        if low.rows.dtype == torch.float32:
            return _error_of_fp32(self.norm, largest, low.rows.shape[1], CPU)
        rounded = self.norm + self.rounding
        adding = 1.1 * low.rows.shape[1] * 2.0**-24 * rounded * low.norm
        return self.rounding * low.norm + self.norm * low.error + adding


def _error_of_fp32(norm: np.ndarray, largest: float, dim: int, device: torch.device) -> np.ndarray:
    """Of products summed in fp32; on a GPU that may round factors to TF32 or bf16, where torch is set so."""
    rounded = device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return (1.1 * dim * 2.0**-24 + rounded * 2.1 * 2.0**-8) * norm * largest


def _tensor(rows: np.ndarray) -> Tensor:
    """The rows as a tensor in fp32, without a copy where they are that already and may be written."""
    rows = np.ascontiguousarray(rows, np.float32)
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


@functools.cache
def _has_bf16() -> bool:
    """Are products in bf16 faster here than in fp32, and are they summed in fp32?"""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(rows, 256, generator=generator) for rows in (QUERIES, ROWS))

    def seconds(dtype: torch.dtype) -> float:
        left, right, taken = a.to(dtype), b.to(dtype), []
        for _ in range(5):
            start = time.perf_counter()
            torch.mm(left, right.T)
            taken.append(time.perf_counter() - start)
        return min(taken)

    ones = torch.full((64, 512), 2.0**-9).index_fill_(1, torch.tensor([0]), 1.0)
    summed = ones.bfloat16() @ torch.ones(64, 512, dtype=torch.bfloat16).T  # 1 if summed in bf16
    return bool((summed > 1.9).all()) and seconds(torch.bfloat16) < seconds(torch.float32)
