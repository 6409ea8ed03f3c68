"""How bad a classifier's mistakes are by a taxonomy of its classes.

Precision, recall and F over ancestors [Silla & Freitas 2011]; the height of the lowest common ancestor
[Bertinetto 2020, arXiv 1912.09393]; tree-induced error [Dekel 2004]; decisions of least expected height
[Karthik 2021, arXiv 2104.00795]. A class may have several parents, as in WordNet; then the lowest common
ancestor is the common ancestor of least height, and the distance leads over the nearest one.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse

from omma.data.sources.taxonomy import Taxonomy
from omma.evaluation import confidence
from omma.evaluation.metrics import TOP, Figure

CHUNK = 50_000  # pairs of classes compared at a time
ROWS = 2_048  # images at a time whose expected heights are in memory
NAMES = {  # in the order of tables; the accuracies of levels follow
    "h_precision": "hierarchical precision",
    "h_recall": "hierarchical recall",
    "h_f1": "hierarchical F1",
    "h_precision_macro": "hierarchical precision, mean of images",
    "h_recall_macro": "hierarchical recall, mean of images",
    "h_f1_macro": "hierarchical F1, mean of images",
    "lca_height": "common ancestor's height",
    "lca_height_mistakes": "common ancestor's height, mistakes alone",
    f"lca_height@{TOP}": f"common ancestor's height, first {TOP} answers",
    "tree_error": "tree-induced error",
    "crm_top1": "least expected height: top-1",
    "crm_lca_height": "least expected height: common ancestor's",
    "crm_lca_height_mistakes": "least expected height: the same, mistakes alone",
}


class Pairs(NamedTuple):
    """Pairs of classes, compared."""

    shared: Int[np.ndarray, "n"]  # nodes in both sets of ancestors: each class itself, but not the root
    heights: Int[np.ndarray, "n"]  # of the lowest common ancestor; 0 for a class and itself
    distances: Int[np.ndarray, "n"]  # edges from one over a common ancestor to the other


@dataclass(frozen=True, eq=False)
class Tree:
    """A taxonomy cut to the classes and their ancestors."""

    up: Int[sparse.csr_array, "c n"]  # 1 + the edges from a class up to each ancestor, itself included
    heights: Int[np.ndarray, "n"]  # of each node: edges on the longest path down to a class
    parents: Int[np.ndarray, "n"]  # each node's parent, the first of several; -1 for the root
    levels: dict[str, Int[np.ndarray, "c"]]  # each class's ancestor on each level; empty with several parents
    names: tuple[str, ...]  # of the nodes
    several: bool  # whether a node has several parents
    notes: tuple[str, ...]

    @classmethod
    def of(cls, taxonomy: Taxonomy, classes: Sequence[str]) -> "Tree":
        """Raises ValueError, in one line, for a cycle and for a class that is no node or several."""
        order = _sorted(taxonomy)
        rows = _nodes(taxonomy, classes)
        parents: dict[int, list[int]] = {}
        for parent, child in taxonomy.edges:
            parents.setdefault(child, []).append(parent)
        used = _with_ancestors(rows, parents)
        nodes = [node for node in order if node in used]  # parents first
        roots = [node for node in nodes if node not in parents]
        names, notes = list(taxonomy.nodes), []
        if len(roots) > 1:
            root, names = len(names), [*names, "(root)"]
            parents |= {node: [root] for node in roots}
            nodes = [root, *nodes]
            few = ", ".join(taxonomy.nodes[node] for node in roots[:3])
            notes.append(f"{taxonomy.source} has {len(roots):,} roots ({few}, ...): one above them was added")
        number = {node: k for k, node in enumerate(nodes)}
        above = [[number[p] for p in parents.get(node, ())] for node in nodes]
        distances: list[dict[int, int]] = []
        for k, own in enumerate(above):
            near = {a: 1 + d for parent in reversed(own) for a, d in distances[parent].items()}
            for parent in own:  # the shortest way up
                near |= {a: 1 + d for a, d in distances[parent].items() if 1 + d < near[a]}
            distances.append(near | {k: 0})
        heights = np.zeros(len(nodes), np.int64)
        for k in range(len(nodes) - 1, 0, -1):
            for parent in above[k]:
                heights[parent] = max(heights[parent], heights[k] + 1)
        at = [number[row] for row in rows]
        up = _matrix([distances[k] for k in at], len(nodes))
        several = any(len(own) > 1 for own in above)
        depth = [max(each.values()) for each in distances]
        level = [taxonomy.level_of[n] if n < len(taxonomy.level_of) else -1 for n in nodes]
        levels = (
            {} if several else _levels(distances, at, level if taxonomy.levels else depth, taxonomy.levels)
        )
        first = np.array([own[0] if own else -1 for own in above])
        return cls(up, heights, first, levels, tuple(names[n] for n in nodes), several, tuple(notes))

    @property
    def own(self) -> Int[np.ndarray, "c"]:
        """Each class's node."""
        return self.up.indices[self.up.data == 1]  # one in each row

    @property
    def _pattern(self) -> Int[sparse.csr_array, "c n"]:
        """1 for each ancestor of a class."""
        return sparse.csr_array((np.ones_like(self.up.data), self.up.indices, self.up.indptr), self.up.shape)

    @property
    def order(self) -> Int[np.ndarray, "c"]:
        """The classes so that relatives stand together: by the names on their paths from the root."""
        paths = []
        for node in self.own.tolist():
            path = []
            while node >= 0:
                path.append(self.names[node])
                node = int(self.parents[node])
            paths.append(path[::-1])
        return np.array(sorted(range(len(paths)), key=lambda k: paths[k]), np.int64)

    def compare(self, a: Int[np.ndarray, "n"], b: Int[np.ndarray, "n"]) -> Pairs:
        """Compare classes pair by pair; each distinct pair is computed once."""
        c = len(self.own)
        codes, inverse = np.unique(np.minimum(a, b) * c + np.maximum(a, b), return_inverse=True)
        pattern = sparse.csr_array(
            (np.ones_like(self.up.data), self.up.indices, self.up.indptr), self.up.shape
        )
        chunks = []
        for first in range(0, len(codes), CHUNK):
            i, j = np.divmod(codes[first : first + CHUNK], c)
            one = self.up[i].multiply(pattern[j]).tocsr()
            other = pattern[i].multiply(self.up[j]).tocsr()
            one.sort_indices()
            other.sort_indices()  # both hold the common ancestors, in the same order
            starts = one.indptr[:-1]
            heights = np.minimum.reduceat(self.heights[one.indices], starts)
            chunks.append(
                (
                    np.diff(one.indptr) - 1,
                    np.where(i == j, 0, heights),
                    np.minimum.reduceat(one.data + other.data - 2, starts),
                )
            )
        return Pairs(*(np.concatenate(each).astype(np.int64)[inverse] for each in zip(*chunks, strict=True)))

    def least_expected_height(self, probabilities: Float[np.ndarray, "m c"]) -> Int[np.ndarray, "m"]:
        """The class of least expected height of its common ancestor with the right one [Karthik 2021, eq. 2].

        Only where each node has one parent: on the path from the root to class j the probability below each
        node is known, so that the sum over all classes becomes one over j's ancestors.
        """
        assert not self.several
        below = self._pattern.astype(np.float64)
        steps = self.heights - np.where(self.parents >= 0, self.heights[self.parents], 0)
        steps[self.parents < 0] = 0  # the root's height is in every sum
        own = self.heights[self.own]
        answers = []
        for first in range(0, len(probabilities), ROWS):
            p = probabilities[first : first + ROWS].astype(np.float64)
            cost = (below @ ((below.T @ p.T) * steps[:, None])).T - p * own
            answers.append(cost.argmin(1))
        return np.concatenate(answers)


def measures(
    tree: Tree,
    predictions: Int[np.ndarray, "m"],
    labels: Int[np.ndarray, "m"],
    scores: Float[np.ndarray, "m c"] | None = None,
    probabilities: bool = False,
    seed: int = 0,
    groups: Int[np.ndarray, "m"] | None = None,
) -> dict[str, Figure]:
    """The figures of NAMES that are defined, then the accuracy on each level, with intervals over images.

    scores: of every class, for the mean over the TOP first answers; probabilities: the scores are such, for
    decisions of least expected height. groups: of the images; intervals draw whole ones.
    """
    over = _Over(seed, groups)
    pairs = tree.compare(predictions, labels)
    sizes = np.diff(tree.up.indptr) - 1  # ancestors of each class without the root
    wrong = predictions != labels
    one = np.ones(len(labels), np.int64)
    found = {
        "h_precision": _share(pairs.shared, sizes[predictions], over),
        "h_recall": _share(pairs.shared, sizes[labels], over),
        "h_f1": _share(2 * pairs.shared, sizes[predictions] + sizes[labels], over),
    }
    for name, size in (("precision", sizes[predictions]), ("recall", sizes[labels])):
        found[f"h_{name}_macro"] = _mean(pairs.shared / np.maximum(size, 1), over)
    both = sizes[predictions] + sizes[labels]
    found["h_f1_macro"] = _mean(2 * pairs.shared / np.maximum(both, 1), over)
    found |= _heights(pairs.heights, wrong, over, "")
    found["tree_error"] = _share(pairs.distances, one, over)
    if scores is not None and scores.shape[1] > TOP:
        answers = _first(scores)
        each = tree.compare(answers.ravel(), labels.repeat(TOP)).heights.reshape(-1, TOP)
        found[f"lca_height@{TOP}"] = _share(each.sum(1), TOP * one, over)
    if scores is not None and probabilities and not tree.several:
        answers = tree.least_expected_height(scores)
        found["crm_top1"] = _share((answers == labels).astype(np.int64), one, over)
        found |= _heights(tree.compare(answers, labels).heights, answers != labels, over, "crm_")
    found = {name: found[name] for name in NAMES if name in found}
    for name, nodes in tree.levels.items():
        right = nodes[predictions] == nodes[labels]
        interval = confidence.bootstrap(right, seed, groups=groups)
        found[f"accuracy, {name}"] = Figure(float(right.mean()), interval)
    return found


class _Over(NamedTuple):
    """What intervals draw."""

    seed: int
    groups: Int[np.ndarray, "m"] | None


def _heights(
    heights: Int[np.ndarray, "m"], wrong: Bool[np.ndarray, "m"], over: _Over, prefix: str
) -> Mapping[str, Figure]:
    found = {f"{prefix}lca_height": _share(heights, np.ones_like(heights), over)}
    if wrong.any():
        some = over if over.groups is None else _Over(over.seed, over.groups[wrong])
        found[f"{prefix}lca_height_mistakes"] = _share(heights[wrong], np.ones_like(heights[wrong]), some)
    return found


def _first(scores: Float[np.ndarray, "m c"]) -> Int[np.ndarray, "m k"]:
    """The TOP classes of largest score, the largest first."""
    answers = np.argpartition(-scores, TOP - 1, axis=1)[:, :TOP]
    order = np.argsort(-np.take_along_axis(scores, answers, 1), axis=1, kind="stable")
    return np.take_along_axis(answers, order, 1)


def _share(numerator: Int[np.ndarray, "m"], denominator: Int[np.ndarray, "m"], over: _Over) -> Figure:
    """A ratio of sums over images."""
    if numerator.sum() in (0, denominator.sum()) and (numerator <= denominator).all():
        interval = confidence.bootstrap(numerator > 0, over.seed, groups=over.groups)
    else:
        interval = confidence.ratio(numerator, denominator, over.seed, groups=over.groups)
    return Figure(float(numerator.sum() / denominator.sum()), interval)


def _mean(values: Float[np.ndarray, "m"], over: _Over) -> Figure:
    return Figure(float(values.mean()), confidence.mean(values, over.seed, over.groups))


# ---------------------------------------------------------------- from the file to the tree
def _sorted(taxonomy: Taxonomy) -> list[int]:
    """All nodes, parents first. Raises ValueError that names a cycle."""
    children: dict[int, list[int]] = {}
    waiting = [0] * len(taxonomy.nodes)
    for parent, child in taxonomy.edges:
        children.setdefault(parent, []).append(child)
        waiting[child] += 1
    order = [node for node, n in enumerate(waiting) if n == 0]
    for node in order:
        for child in children.get(node, ()):
            waiting[child] -= 1
            if waiting[child] == 0:
                order.append(child)
    if len(order) < len(waiting):
        raise ValueError(
            f"{taxonomy.source}: {_cycle(taxonomy, waiting)} is a cycle: remove one of its edges"
        )
    return order


def _cycle(taxonomy: Taxonomy, waiting: Sequence[int]) -> str:
    """The names on a cycle: from a node that still waits for a parent, up until one comes twice."""
    parent = {child: parent for parent, child in taxonomy.edges if waiting[parent] and waiting[child]}
    node, path = next(iter(parent)), []
    while node not in path:
        path.append(node)
        node = parent[node]
    cycle = [*path[path.index(node) :], node][::-1]
    return " > ".join(taxonomy.nodes[each] for each in cycle[:6])


def _nodes(taxonomy: Taxonomy, classes: Sequence[str]) -> list[int]:
    """The node of each class: by its name, else by the same but for case, spaces and underscores."""
    exact: dict[str, list[int]] = {}
    alike: dict[str, list[int]] = {}
    named = [(name, k) for k, name in enumerate(taxonomy.nodes)]
    named += [(name, k) for name, nodes in taxonomy.aliases.items() for k in nodes]
    for name, k in named:
        exact.setdefault(name, []).append(k)
        alike.setdefault(_alike(name), []).append(k)
    return [_one(taxonomy, name, exact.get(name) or alike.get(_alike(name), [])) for name in classes]


def _one(taxonomy: Taxonomy, name: str, nodes: Sequence[int]) -> int:
    """The only node; of groups of one name the narrowest. Raises ValueError for none or several."""
    nodes = list(dict.fromkeys(nodes))
    if taxonomy.levels and len(nodes) > 1:
        lowest = max(taxonomy.level_of[k] for k in nodes)
        nodes = [k for k in nodes if taxonomy.level_of[k] == lowest]
    if not nodes:
        near = difflib.get_close_matches(name, [*taxonomy.nodes, *taxonomy.aliases], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"{taxonomy.source}: the class {name!r} is no node of it; {hint}add or rename it")
    if len(nodes) > 1:
        raise ValueError(
            f"{taxonomy.source}: the class {name!r} is {len(nodes)} nodes of it; give each a name of its own "
            "or, if it has two parents, give edges with the columns parent and child"
        )
    return nodes[0]


def _alike(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def _with_ancestors(nodes: Sequence[int], parents: Mapping[int, Sequence[int]]) -> set[int]:
    found, new = set(nodes), list(nodes)
    while new:
        new = [p for node in new for p in parents.get(node, ()) if p not in found]
        found |= set(new)
    return found


def _matrix(distances: Sequence[Mapping[int, int]], n: int) -> sparse.csr_array:
    rows = np.repeat(np.arange(len(distances)), [len(each) for each in distances])
    columns = np.fromiter((k for each in distances for k in each), np.int64, len(rows))
    data = np.fromiter((1 + d for each in distances for d in each.values()), np.int64, len(rows))
    return sparse.csr_array((data, (rows, columns)), shape=(len(distances), n))


def _levels(
    distances: Sequence[Mapping[int, int]], at: Sequence[int], level: Sequence[int], names: Sequence[str]
) -> dict[str, Int[np.ndarray, "c"]]:
    """Each class's ancestor on each level; where it has none there, the one above.

    at: the classes' nodes; level: of each node, -1 for an added root. Levels on which all are alike are left
    out.
    """
    most = max(level[k] for k in at) + 1
    table = np.full((len(at), most), -1)
    for row, node in enumerate(at):
        for ancestor in distances[node]:
            if level[ancestor] >= 0:
                table[row, level[ancestor]] = ancestor
    for column in range(1, most):
        empty = table[:, column] < 0
        table[empty, column] = table[empty, column - 1]
    called = names or [f"level {depth}" for depth in range(most)]
    return {called[k]: table[:, k] for k in range(most) if len(np.unique(table[:, k])) > 1}
