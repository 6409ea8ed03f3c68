"""Recipes: those of earlier versions' runs are restored, so that these resume; the page shows today's."""

import importlib
import json
import re
from pathlib import Path

import pytest

from omma import methods
from omma.core.recipe import Recipe

ROOT = Path(__file__).parents[2]

SMALL = json.loads(Path(__file__).with_name("small_recipes.json").read_text())


@pytest.mark.parametrize("case", SMALL)
def test_the_recipe_of_an_earlier_versions_run_is_restored(case):
    """So that it resumes as it began, whatever the small recipe is by now."""
    before = SMALL[case]
    restored = Recipe.restored(before, methods.get(case.split()[0]).Config)
    now = json.loads(json.dumps(restored.settings()))
    for kept in (before, now):  # what is None may be absent
        kept["config"] = {k: v for k, v in kept["config"].items() if v is not None}
    assert now == {k: v for k, v in before.items() if v is not None or k in now}


@pytest.mark.parametrize("name", sorted({case.split()[0] for case in SMALL}))
def test_todays_small_recipe_is_restored_from_its_settings(name):
    recipe = methods.get(name).small(64, "vit-n/4")
    assert Recipe.restored(json.loads(json.dumps(recipe.settings())), type(recipe.config)) == recipe


def number(cell: str) -> tuple[float, ...] | str:
    """What a cell of the table says of omma."""
    text = cell.partition("** (")[0].removeprefix("**")
    words = {"yes": 1.0, "no": 0.0}
    parts = [words.get(part, part.replace(",", "")) for part in re.split(r", (?=\S)", text)]
    try:
        return tuple(map(float, parts))
    except ValueError:
        return text


def test_the_page_shows_todays_recipes(monkeypatch):
    """docs/recipes.md: what it says of omma is what a run would use now; no clone is needed."""
    pytest.importorskip("timm", reason="timm (bench group) is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    bench = importlib.import_module("recipes")
    lines = (ROOT / "docs" / "recipes.md").read_text().partition(bench.BEGIN)[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][
        1:
    ]
    scripts = {script.name: script for script in bench.SCRIPTS}
    assert {row[0] for row in rows} == set(scripts)
    stale = []
    for name, script in scripts.items():
        for at, run in enumerate([(script.batch, script.epochs), *bench.OTHERS]):
            now = bench.ours(script, *run)
            for _, what, *cells in (row for row in rows if row[0] == name):
                said, is_now = number(cells[at] or cells[0]), number(bench.written(now[what]))
                if isinstance(said, str) or isinstance(is_now, str):
                    equal = said == is_now
                else:  # numbers have three digits there, and are the script's if they are equal
                    equal = said == pytest.approx(is_now, rel=7e-3, abs=1e-6 * now["rate: peak"])
                if not equal:
                    stale.append(f"{name}, {what}: {said} there, {is_now} now")
    assert not stale, f"{stale}: python benchmarks/recipes.py --references DIR --write"


def test_pieces_of_scripts_are_read_as_they_run(tmp_path, monkeypatch):
    """What benchmarks/recipes.py takes out of files: parsers, flags, values, functions, keywords."""
    pytest.importorskip("timm", reason="timm (bench group) is not installed")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    scripts = importlib.import_module("published.scripts")
    file = tmp_path / "main.py"
    file.write_text(
        "import cluster\n"
        "def parser():\n"
        "    parser.add_argument('--lr', default=0.5, type=float, help=cluster.HELP)\n"
        "    parser.add_argument('--scale', nargs='+', type=float, default=(0.1, 1.0))\n"
        "    parser.set_defaults(repeated=True)\n"
        "flags.DEFINE_float('rate', 0.3, 'a rate'); flags.DEFINE_boolean('blur', True, '')\n"
        "def twice(x):\n    return np.array(2 * x)\n"
        "def small():\n    return Net(heads=12)\n"
        "def base():\n    return Net(heads=16)\n"
        "def main(args):\n"
        "    args.lr = args.lr * batch / 256\n"
    )
    args = scripts.arguments(file, ["--scale", "0.2", "0.9"])
    assert (args.lr, args.scale, args.repeated) == (0.5, [0.2, 0.9], True)
    assert scripts.assigned(file, "args.lr", args=args, batch=512) == 1.0
    assert scripts.flags(file, ["--rate=0.7"]).rate == 0.7
    assert scripts.taken(file, "twice")[0](3) == 6
    assert scripts.passed(file, "Net", "heads", "base") == 16
    with pytest.raises(AssertionError, match="--unknown"):
        scripts.arguments(file, ["--unknown"])
    rates = scripts.rates(lambda step: min(step / 4, 1.0), total=20, warmup=4, per_epoch=2)
    assert list(rates.values()) == [0.0, 0.5, 1.0, 1.0, 1.0, 4]
