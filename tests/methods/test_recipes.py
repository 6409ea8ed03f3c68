"""Recipes: the small ones are those of the runs of earlier versions, which so resume."""

import json
from pathlib import Path

import pytest

from omma import methods

SMALL = json.loads(Path(__file__).with_name("small_recipes.json").read_text())


@pytest.mark.parametrize("case", SMALL)
def test_a_small_recipe_is_what_it_was(case):
    """`Recipe.settings` is compared when a run resumes; what is None there may be absent."""
    name, size, model = case.split()
    settings = json.loads(json.dumps(methods.get(name).small(int(size), model).settings()))
    before, now = ({**d, **d["config"]} for d in (SMALL[case], settings))
    changed = {k: (before.get(k), now.get(k)) for k in {*before, *now} - {"config"}}
    changed = {k: pair for k, pair in changed.items() if pair[0] != pair[1]}
    assert not changed, (
        f"{name}: {changed} (before, now): runs of earlier versions cannot be resumed. A new field of Config "
        'needs metadata={"before": what earlier versions did}, and the small recipe that value'
    )
