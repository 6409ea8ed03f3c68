"""The names that `import omma` offers."""

import importlib

import omma


def test_verbs_stay_functions_whatever_was_imported():
    """A module of the same name would take the function's place once it is imported."""
    for name in omma.__all__:
        found = getattr(omma, name)
        assert callable(found)
        if found.__module__.startswith("omma.verbs."):
            importlib.import_module(f"omma.verbs.{name}")
        assert getattr(omma, name) is found
