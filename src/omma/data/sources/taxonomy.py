"""Read a taxonomy of classes: edges, columns from the widest group to the narrowest, text, or JSON."""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omma.core.errors import line
from omma.core.files import decode_text
from omma.data.sources.columns import texts
from omma.data.sources.tables import ENDINGS, LABELS, read_table

RANKS = ("kingdom", "phylum", "class", "order", "family", "genus")  # of iNaturalist's categories
ALIASES = ("id", "image_dir_name", "common_name")  # by which its data sets name a category, too
FORMS = "parent and child, or columns such as order, family, genus, species; docs/evaluate.md has all forms"
_INDENT = re.compile(r"[\s\-]*")


class Taxonomy(NamedTuple):
    """Nodes and edges as the file has them; `evaluation.hierarchy` checks them.

    Without levels a node's level is its depth; with them it is its column.
    """

    source: str
    nodes: list[str]  # each node's name
    edges: list[tuple[int, int]]  # (parent, child)
    aliases: dict[str, list[int]]  # the nodes of each further name
    levels: tuple[str, ...] = ()  # names of the columns
    level_of: list[int] = []  # each node's column  # noqa: RUF012


def read(file: str | Path) -> Taxonomy:
    """Read a taxonomy; the file may be a member of a .zip: birds.zip/taxonomy.csv.

    Raises ValueError, in one line, for a file that cannot be read or has none of the forms.
    """
    name = str(file)
    try:
        data = _content(Path(file))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{name}: cannot be read as a taxonomy ({line(error)})") from None
    if name.lower().endswith(ENDINGS):
        taxonomy = _of_table(data, name)
    elif name.lower().endswith(".json"):
        taxonomy = _of_json(data, name)
    else:
        taxonomy = _of_text(_decoded(data, name), name)
    if not taxonomy.edges:
        raise ValueError(f"{name}: no edge between two groups in it; give {FORMS}")
    return taxonomy


def _content(path: Path) -> bytes:
    if not path.exists():
        for archive in path.parents:
            if archive.suffix.lower() == ".zip" and archive.is_file():
                with zipfile.ZipFile(archive) as opened:
                    return opened.read(path.relative_to(archive).as_posix())
    return path.read_bytes()


def _decoded(data: bytes, name: str) -> str:
    try:
        return decode_text(data)
    except ValueError as error:
        raise ValueError(f"{name}: cannot be read as a taxonomy ({line(error)}); give UTF-8") from None


# ---------------------------------------------------------------- tables
def _of_table(data: bytes, name: str) -> Taxonomy:
    table = read_table(data, name)
    columns = {
        each: [(v or "").strip() for v in texts(table, each).to_pylist()] for each in table.column_names
    }
    lower = {each.lower(): each for each in columns}
    if {"parent", "child"} <= lower.keys():
        return _of_edges(zip(columns[lower["parent"]], columns[lower["child"]], strict=True), name)
    if len(columns) < 2:
        raise ValueError(f"{name}: one column is no taxonomy; give {FORMS}")
    first, second, *others = ({each, *cells} - {""} for each, cells in columns.items())
    if not others and first & second:
        raise ValueError(f"{name}: it looks like edges: name its columns parent and child, in a first line")
    key = _key(columns)
    levels = [each for each in columns if each != key]
    paths = list(zip(*(columns[each] for each in levels), strict=True))
    keys = columns[key] if key else []
    if key and len(set(paths)) < len(paths):  # classes that share a whole path lie below it
        levels, paths = [*levels, key], [(*path, k) for path, k in zip(paths, keys, strict=True)]
    return _of_paths(paths, levels, [[k] for k in keys], name)


def _key(columns: Mapping[str, Sequence[str]]) -> str | None:
    """The column that names the row's class instead of a group: called so, not the last, no name in it twice.

    `class` is a rank of biology as well; there, many rows share it.
    """
    rows = len(next(iter(columns.values())))
    for each in list(columns)[:-1]:
        if each.lower() in LABELS and len(set(filter(None, columns[each]))) == rows:
            return each
    return None


def _of_paths(
    paths: Iterable[Sequence[str]], levels: Sequence[str], aliases: Sequence[Sequence[str]], name: str
) -> Taxonomy:
    """Rows of names from the widest group to the narrowest; an empty cell skips the level.

    Groups of one name under different parents are different nodes. aliases: further names of each row's last.
    """
    numbers: dict[tuple[str, ...], int] = {}
    nodes, edges, level_of = [], [], []
    other: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        above: tuple[str, ...] = ()
        for level, cell in enumerate(path):
            if not cell:
                continue
            here = (*above, f"{level} {cell}")
            if here not in numbers:
                numbers[here] = len(nodes)
                nodes.append(cell)
                level_of.append(level)
                if above:
                    edges.append((numbers[above], numbers[here]))
            above = here
        if above and row < len(aliases):
            for alias in filter(None, aliases[row]):
                if numbers[above] not in other.setdefault(alias, []):
                    other[alias].append(numbers[above])
    return Taxonomy(name, nodes, edges, other, tuple(levels), level_of)


def _of_edges(pairs: Iterable[tuple[str, str]], name: str) -> Taxonomy:
    """Equal names are one node; a row without a parent names a root."""
    numbers: dict[str, int] = {}
    edges: dict[tuple[int, int], None] = {}
    for parent, child in pairs:
        ends = [numbers.setdefault(each, len(numbers)) for each in (parent, child) if each]
        if len(ends) == 2:
            edges[ends[0], ends[1]] = None
    return Taxonomy(name, list(numbers), list(edges), {})


# ---------------------------------------------------------------- JSON and text
def _of_json(data: bytes, name: str) -> Taxonomy:
    try:
        content = json.loads(_decoded(data, name))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: not JSON ({line(error)}); save it again") from None
    try:
        if isinstance(content, dict) and "nodes" in content:
            return _of_graph(content, name)
        categories = content["categories"] if isinstance(content, dict) else content
        return _of_categories(categories, name)
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(
            f"{name}: neither a graph of nodes and links, as nbdt writes it, nor iNaturalist's categories; "
            f"give {FORMS}"
        ) from None


def _of_graph(content: Mapping[str, Any], name: str) -> Taxonomy:
    """nbdt's graph, in networkx's node-link form; a node is known by its id and by its label."""
    numbers = {str(node["id"]): k for k, node in enumerate(content["nodes"])}
    links = content["links"] if "links" in content else content["edges"]
    edges = [(numbers[str(link["source"])], numbers[str(link["target"])]) for link in links]
    aliases: dict[str, list[int]] = {}
    for k, node in enumerate(content["nodes"]):
        if node.get("label") and node["label"] != node["id"]:
            aliases.setdefault(str(node["label"]), []).append(k)
    return Taxonomy(name, list(numbers), edges, aliases)


def _of_categories(categories: Sequence[Mapping[str, Any]], name: str) -> Taxonomy:
    """iNaturalist's categories: their ranks, or else the supercategory, above the name."""
    ranks = [rank for rank in RANKS if any(rank in each for each in categories)] or ["supercategory"]
    paths = [(*(str(each.get(rank) or "") for rank in ranks), str(each["name"])) for each in categories]
    aliases = [[str(each[key]) for key in ALIASES if key in each] for each in categories]
    return _of_paths(paths, [*ranks, "species" if "genus" in ranks else "name"], aliases, name)


def _of_text(text: str, name: str) -> Taxonomy:
    """A line a node, indented below its parent by spaces, tabs or dashes; or is-a lines: PARENT CHILD."""
    lines = [each for each in text.splitlines() if each.strip()]
    indented = any(each[0] in " \t-" for each in lines)
    if not indented and all(len(each.split()) == 2 for each in lines):
        return _of_edges(((a, b) for a, b in map(str.split, lines)), name)
    if not indented:
        raise ValueError(
            f"{name}: no line is indented and not all are a pair of names; indent each group below its "
            f"parent, write `PARENT CHILD` lines, or give {FORMS}"
        )
    nodes, edges = [], []
    above: list[tuple[int, int]] = []  # (indentation, node) of the line's ancestors
    for width, label in _indented(lines):
        while above and above[-1][0] >= width:
            above.pop()
        if above:
            edges.append((above[-1][1], len(nodes)))
        above.append((width, len(nodes)))
        nodes.append(label)
    return Taxonomy(name, nodes, edges, {})


def _indented(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    for each in lines:
        each = each.expandtabs(8)
        match = _INDENT.match(each)
        assert match is not None
        if label := each[match.end() :].strip():
            yield match.end(), label
