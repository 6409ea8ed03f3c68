"""Mistakes by a taxonomy: hand-worked trees, hiclass and networkx as oracles, files of every form."""

import itertools
import json
import zipfile

import numpy as np
import pytest

from omma.data.sources import taxonomy
from omma.data.sources.taxonomy import Taxonomy
from omma.evaluation import hierarchy
from omma.evaluation.hierarchy import Tree

FOREST = "parent,child\na,a1\na,a2\nb,b1\n"  # two roots, so that one is added
ANIMALS = "animal\n  bird\n    owl\n    crow\n  cat\n"


def tree_of(text, classes, tmp_path, name="t.csv") -> Tree:
    (tmp_path / name).write_text(text)
    return Tree.of(taxonomy.read(tmp_path / name), classes)


def random_tree(rng, leaves, depth=4):
    """Classes below `depth` - 1 levels of groups, as columns; a group's name holds that of the one above."""
    bits = rng.integers(0, 2, (leaves, depth - 1)).astype(str)
    paths = [["".join(row[: level + 1]) for level in range(depth - 1)] for row in bits]
    return taxonomy._of_paths([(*p, f"c{k}") for k, p in enumerate(paths)], list("abcd")[:depth], [], "x")


def values(tree, predictions, labels, **options):
    found = hierarchy.measures(tree, np.asarray(predictions), np.asarray(labels), **options)
    return {name: figure.value for name, figure in found.items()}


def test_the_worked_tree(tmp_path):
    """Truth a1 a2 b1, answers a2 a2 a1: heights 1, 0, 2; edges 2, 0, 4."""
    tree = tree_of(FOREST, ["a1", "a2", "b1"], tmp_path)
    assert "2 roots (a, b, ...): one above them was added" in tree.notes[0]
    found = values(tree, [1, 1, 0], [0, 1, 2])
    expected = {
        "h_precision": 0.5, "h_recall": 0.5, "h_f1": 0.5, "h_f1_macro": 0.5,
        "lca_height": 1.0, "lca_height_mistakes": 1.5, "tree_error": 2.0,
        "accuracy, level 1": 2 / 3, "accuracy, level 2": 1 / 3,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_precision_and_recall_differ_where_classes_lie_at_other_depths(tmp_path):
    """cat {cat}, owl {bird, owl}: an owl taken for a cat shares nothing, one taken for a bird one node."""
    tree = tree_of(ANIMALS, ["owl", "bird", "cat"], tmp_path, "t.txt")
    found = values(tree, [1, 2], [0, 0])
    assert found["h_precision"] == pytest.approx(1 / 2)  # (1 + 0) / (1 + 1)
    assert found["h_recall"] == pytest.approx(1 / 4)  # (1 + 0) / (2 + 2)
    assert found["h_f1"] == pytest.approx(1 / 3)
    assert found["lca_height"] == pytest.approx(1.5)  # bird itself has height 1, the root 2
    assert found["tree_error"] == pytest.approx(2.0)  # 1 and 3 edges
    assert values(tree, [1, 1], [1, 1])["lca_height"] == 0  # right, though bird has height 1


def test_hiclass_measures_the_same():
    hiclass = pytest.importorskip("hiclass.metrics")
    rng = np.random.default_rng(0)
    for _ in range(15):
        taxonomy_ = random_tree(rng, 12)
        names = [f"c{k}" for k in range(12)]
        tree = Tree.of(taxonomy_, names)
        paths = np.array([[tree.names[n] for n in (*(tree.levels[each][k] for each in tree.levels),)]
                          for k in range(12)])  # fmt: skip
        labels, predictions = rng.integers(0, 12, 30), rng.integers(0, 12, 30)
        found = values(tree, predictions, labels)
        pair = paths[labels], paths[predictions]
        assert found["h_precision"] == pytest.approx(hiclass.precision(*pair), abs=1e-12)
        assert found["h_recall"] == pytest.approx(hiclass.recall(*pair), abs=1e-12)
        assert found["h_f1"] == pytest.approx(hiclass.f1(*pair), abs=1e-12)


@pytest.mark.parametrize("extra", [0, 6])
def test_networkx_finds_the_same_ancestors(extra):
    """extra: second parents, which make the tree a graph."""
    networkx = pytest.importorskip("networkx")
    rng = np.random.default_rng(extra)
    edges = {(int(rng.integers(0, k)), k) for k in range(1, 30)}
    edges |= {(int(rng.integers(0, k)), k) for k in rng.integers(20, 30, extra).tolist()}
    tree = Tree.of(Taxonomy("x", [str(k) for k in range(30)], sorted(edges), {}), [str(k) for k in range(30)])
    graph = networkx.DiGraph(sorted(edges))
    above = {k: networkx.ancestors(graph, k) | {k} for k in graph}
    heights = {
        k: max(
            (len(path) - 1 for leaf in graph for path in networkx.all_simple_paths(graph, k, leaf)), default=0
        )
        for k in graph
    }
    steps = dict(networkx.all_pairs_shortest_path_length(graph))
    a, b = map(np.array, zip(*itertools.product(range(30), repeat=2), strict=True))
    found = tree.compare(a, b)
    for i, j, shared, height, distance in zip(a, b, *found, strict=True):
        common = above[i] & above[j]
        assert shared == len(common) - 1
        assert height == (0 if i == j else min(heights[k] for k in common))
        assert distance == min(steps[k][i] + steps[k][j] for k in common)
    assert tree.several == bool(extra)
    assert bool(tree.levels) != tree.several


def test_a_star_knows_right_and_wrong_alone(tmp_path):
    names = [f"c{k}" for k in range(7)]
    tree = tree_of("parent,child\n" + "".join(f"root,{name}\n" for name in names), names, tmp_path)
    rng = np.random.default_rng(1)
    labels, predictions = rng.integers(0, 7, 50), rng.integers(0, 7, 50)
    found = values(tree, predictions, labels)
    accuracy = (labels == predictions).mean()
    assert found["h_f1"] == pytest.approx(accuracy)
    assert found["lca_height"] == pytest.approx(1 - accuracy)
    assert found["accuracy, level 1"] == pytest.approx(accuracy)


def test_the_order_of_classes_changes_nothing():
    rng = np.random.default_rng(2)
    names = [f"c{k}" for k in range(12)]
    order = rng.permutation(12)
    labels, scores = rng.integers(0, 12, 60), rng.random((60, 12))
    scores /= scores.sum(1, keepdims=True)
    taxonomy_ = random_tree(rng, 12)
    tree, other = Tree.of(taxonomy_, names), Tree.of(taxonomy_, [names[k] for k in order])
    moved, y = scores[:, order], np.argsort(order)[labels]
    one = hierarchy.measures(tree, scores.argmax(1), labels, scores, True)
    assert one == hierarchy.measures(other, moved.argmax(1), y, moved, True)
    drawn = [[t.names[k] for k in t.own[t.order]] for t in (tree, other)]
    assert drawn[0] == drawn[1]


def test_the_decision_of_least_expected_height():
    """Against every pair written out, with classes that are groups of others."""
    rng = np.random.default_rng(3)
    taxonomy_ = random_tree(rng, 14)
    names = [*(f"c{k}" for k in range(14)), "0", "01"]
    tree = Tree.of(taxonomy_, names)
    p = rng.dirichlet(np.full(16, 0.2), 200)
    i, j = map(np.array, zip(*itertools.product(range(16), repeat=2), strict=True))
    costs = p @ tree.compare(i, j).heights.reshape(16, 16)
    chosen = tree.least_expected_height(p.astype(np.float64))
    assert costs[np.arange(200), chosen] == pytest.approx(costs.min(1), abs=1e-12)
    assert (chosen != p.argmax(1)).any()


def test_the_first_answers():
    rng = np.random.default_rng(4)
    tree = Tree.of(random_tree(rng, 9), [f"c{k}" for k in range(9)])
    labels, scores = rng.integers(0, 9, 40), rng.random((40, 9))
    found = values(tree, scores.argmax(1), labels, scores=scores)
    first = np.argsort(-scores, 1)[:, :5]
    each = [tree.compare(first[:, k], labels).heights for k in range(5)]
    assert found["lca_height@5"] == pytest.approx(np.mean(each))
    assert found["lca_height"] == pytest.approx(each[0].mean())
    assert "crm_top1" not in found  # these scores are no probabilities


def test_intervals_hold_the_values():
    rng = np.random.default_rng(5)
    tree = Tree.of(random_tree(rng, 12), [f"c{k}" for k in range(12)])
    labels = rng.integers(0, 12, 200)
    predictions = np.where(rng.random(200) < 0.6, labels, rng.integers(0, 12, 200))
    for name, (value, (low, high)) in hierarchy.measures(tree, predictions, labels).items():
        assert low < value < high, name
    perfect = hierarchy.measures(tree, labels, labels)
    assert perfect["h_f1"].interval95[0] < 1 == perfect["h_f1"].value
    assert "lca_height_mistakes" not in perfect


# ---------------------------------------------------------------- files
COLUMNS = """class,order,family
owl,Strigiformes,Strigidae
crow,Passeriformes,Corvidae
jay,Passeriformes,Corvidae
"""
NAMES = ("animal", "bird", "owl", "crow", "cat")
FORMS = {
    "edges.csv": "parent,child\nanimal,bird\nbird,owl\nbird,crow\nanimal,cat\n",
    "columns.csv": "kingdom,class,species\nanimal,bird,owl\nanimal,bird,crow\nanimal,,cat\n",
    "key.csv": "label,kingdom,class\nowl,animal,bird\ncrow,animal,bird\ncat,animal,\n",
    "isa.txt": "animal bird\nbird owl\nbird crow\nanimal cat\n",
    "spaces.txt": ANIMALS,
    "dashes.txt": "animal\n\n-- bird\n---- owl\n---- crow\n\n-- cat\n",
    "tabs.txt": "animal\n\tbird\n\t\towl\n\t\tcrow\n\tcat\n",
    "graph.json": json.dumps(
        {
            "nodes": [{"id": f"n{k}", "label": name} for k, name in enumerate(NAMES)],
            "links": [{"source": f"n{s}", "target": f"n{t}"} for s, t in ((0, 1), (1, 2), (1, 3), (0, 4))],
        }
    ),
    "categories.json": json.dumps(
        {
            "categories": [
                {"id": 0, "name": "owl", "kingdom": "animal", "class": "bird"},
                {"id": 1, "name": "crow", "kingdom": "animal", "class": "bird"},
                {"id": 2, "name": "cat", "kingdom": "animal"},
            ]
        }
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_tree(name, tmp_path):
    tree = tree_of(FORMS[name], ["owl", "crow", "cat"], tmp_path, name)
    found = tree.compare(np.array([0, 0, 1]), np.array([1, 2, 2]))
    assert found.heights.tolist() == [1, 2, 2]
    assert found.distances.tolist() == [2, 3, 3]
    assert tree.notes == ()


def test_levels_have_the_columns_names(tmp_path):
    """`class` names the row here; where two rows share a path it lies below it."""
    tree = tree_of(COLUMNS, ["owl", "crow", "jay"], tmp_path)
    assert list(tree.levels) == ["order", "family", "class"]
    found = values(tree, [1, 2], [2, 0])
    assert (found["accuracy, order"], found["accuracy, family"], found["accuracy, class"]) == (0.5, 0.5, 0)
    unique = COLUMNS.replace("jay,Passeriformes,Corvidae", "jay,Passeriformes,Laniidae")
    assert list(tree_of(unique, ["owl", "crow", "jay"], tmp_path).levels) == ["order", "family"]


def test_class_is_a_rank_where_rows_share_it(tmp_path):
    text = "kingdom,class,species\nAnimalia,Aves,owl\nAnimalia,Aves,crow\nAnimalia,Mammalia,cat\n"
    assert list(tree_of(text, ["owl", "crow", "cat"], tmp_path).levels) == ["class", "species"]


def test_names_are_matched_but_for_case_and_underscores(tmp_path):
    tree = tree_of("parent,child\nbird,Great Owl\nbird,crow\n", ["great_owl", "Crow", "bird"], tmp_path)
    assert tree.compare(np.array([0]), np.array([2])).distances.tolist() == [1]


def test_a_member_of_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "birds.zip", "w") as archive:
        archive.writestr("meta/taxonomy.csv", FORMS["edges.csv"])
    read = taxonomy.read(tmp_path / "birds.zip" / "meta" / "taxonomy.csv")
    assert read.nodes == ["animal", "bird", "owl", "crow", "cat"]
    with pytest.raises(ValueError, match=r"other.csv: cannot be read as a taxonomy"):
        taxonomy.read(tmp_path / "birds.zip" / "other.csv")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "parent,child\na,b\nb,c\nc,a\n", "a > b > c > a is a cycle|b > c > a > b|c > a > b > c"),
        ("t.csv", "parent,child\na,a\n", "a > a is a cycle"),
        ("t.csv", "parent,child\na,owll\na,x\n", "the class 'owl' is no node of it; did you mean 'owll'"),
        ("t.txt", "a\n b\n  owl\n c\n  owl\n", "the class 'owl' is 2 nodes of it"),
        ("t.csv", "a,owl\nowl,x\nb,y\n", "name its columns parent and child"),
        ("t.csv", "owl\na\n", "one column is no taxonomy"),
        ("t.csv", "parent,child\n,owl\n", "no edge"),
        ("t.txt", "owl\nx\n", "no line is indented"),
        ("t.json", "[1, 2]", "neither a graph"),
        ("t.json", "{", "not JSON"),
    ],
)
def test_what_is_no_taxonomy_is_refused_in_one_line(name, text, words, tmp_path):
    with pytest.raises(ValueError, match=words) as caught:
        tree_of(text, ["owl"], tmp_path, name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)
