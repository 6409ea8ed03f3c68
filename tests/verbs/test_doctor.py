"""`omma doctor` says what it can, whatever is missing."""

import pytest

from omma.core import device
from omma.ops.cpu import library
from omma.verbs.doctor import doctor


@pytest.fixture(autouse=True)
def _no_kernels(monkeypatch):
    """Compiled and measured elsewhere."""
    monkeypatch.setattr(library, "load", lambda: (None, "torch's"))
    monkeypatch.setattr(device, "explain_precision", lambda place: (False, "fp32"))


def test_versions_are_named():
    facts = dict(doctor())
    assert facts["packages"].startswith("torch 2.")
    assert facts["omma"]


def test_caches_that_cannot_be_written_are_said(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OMMA_CACHE", str(tmp_path / "file" / "cache"))
    told = dict(doctor())["caches"]
    assert "cannot be written (Not a directory" in told
    assert "OMMA_CACHE" in told


def test_what_fails_leaves_the_rest(monkeypatch):
    def fail(*_):
        raise RuntimeError("no home")

    monkeypatch.setattr(device, "memory", fail)
    monkeypatch.setattr("omma.core.caches.cache_folder", fail)
    facts = dict(doctor())
    assert facts["memory"] == facts["caches"] == "unknown (RuntimeError: no home)"
    assert facts["python"]
