"""Damaged containers come to images, listed members or one line; benchmarks/ has the longer campaign."""

import importlib
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[3] / "benchmarks"
MUTANTS = 360  # 30 of each container


def test_mutants_of_every_container(tmp_path, monkeypatch):
    pytest.importorskip("resource", reason="the campaign's script is for Linux")
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    hostile = importlib.import_module("hostile_containers")
    failed = []
    for kind, number, container, data, damage, intact in hostile.mutants(7, MUTANTS):
        source = hostile.write(tmp_path / "data", container, data)
        started = time.process_time()
        result, detail = hostile.outcome(source, intact, "x.tar")
        if result != "ok" or time.process_time() - started > hostile.SECONDS:
            failed.append(f"{number}: {kind}, {damage}: {result} ({detail})")
    assert failed == []


def test_the_campaign_sees_what_is_lost(tmp_path, monkeypatch):
    """Undamaged, each container is read whole; a member that is not there is missed."""
    pytest.importorskip("resource", reason="the campaign's script is for Linux")
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    hostile = importlib.import_module("hostile_containers")
    for make in hostile.CONTAINERS.values():
        container = make()
        source = hostile.write(tmp_path / "data", container, container.data)
        assert hostile.outcome(source, list(container.members), "")[0] == "ok"
        assert hostile.outcome(source, ["absent.png"], "")[0] == "lost unsaid"
