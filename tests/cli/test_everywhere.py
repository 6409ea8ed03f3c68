"""Options of every command: --json, --quiet, --plan-only, --config, --completion."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from omma import cli
from omma.adaptation.request import FineTuning
from omma.cli import completion, everywhere, shared
from omma.cli.everywhere import Everywhere
from omma.pretraining import repeat
from omma.pretraining.request import Request

TINY = (
    "--model", "vit-n/4", "--method", "simclr", "--batch-size", "8", "--device", "cpu", "--precision", "fp32",
    "--workers", "0", "--method.hidden", "16", "--model.depth", "1", "--seed", "3",
)  # fmt: skip


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with images, in which the command runs."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", images=pixels, labels=np.arange(24) % 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---------------------------------------------------------------- the words
def test_the_words_are_taken_out():
    words = ["embed", "--quiet", "RUN", "--json=-", "IN", "--plan-only", "--out", "t.csv"]
    rest, said = everywhere.take(words, {})
    assert rest == ["embed", "RUN", "IN", "--out", "t.csv"]
    assert said == Everywhere(quiet=True, plan_only=True, json="-")
    rest, said = everywhere.take(["evaluate", "R", "D", "--json", "x"], {"evaluate": ["json"]})
    assert (rest, said) == (["evaluate", "R", "D", "--json", "x"], Everywhere())  # its own
    assert everywhere.take(["evaluate", "--json", "-"], {"evaluate": ["json"]})[1].json == "-"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["doctor", "--json"], "a file, or - for standard output"),
        (["doctor", "--json", "."], "is a folder"),
        (["pretrain", "--config"], "config.json must follow"),
        (["pretrain", "--config", "nowhere.json"], "no such file"),
        (["pretrain", "--config", "odd.json"], "'colour' is no key of a run's configuration"),
        (["finetune", "--config", "run.json"], "is of a run of `omma pretrain`"),
        (["pretrain", "--config", "bare.json"], "names no images: give IMAGES"),
        (["pretrain", "--config", "bad.json"], "is damaged"),
        (["finetune", "one", "--config", "tuned.json"], "give MODEL and IMAGES, or neither"),
        (["embed", "a", "b", "--out", "v.csv", "--config", "run.json"], "Unrecognized options: --config"),
        (["--completion", "tcsh"], "give the shell, bash, zsh or fish"),
    ],
)
def test_refusals_are_one_line(capsys, place, words, said):
    contents = {
        "odd": {"method": "mae", "colour": 1},
        "run": {"images": "data.npz", "method": "mae"},
        "bare": {"method": "mae"},
        "bad": {"images": "data.npz", "settings": 3},
        "tuned": {"images": "data.npz", "method": "finetune", "init": {"source": "run"}},
    }
    for name, content in contents.items():
        Path(f"{name}.json").write_text(json.dumps(content))
    code, _, error = call(capsys, *words)
    assert (code, error.count("\n")) == (2, 1), error
    assert said in error


# ---------------------------------------------------------------- results
def test_results_as_json(capsys, place):
    code, text, error = call(capsys, "methods", "--json", "-")
    assert code == 0
    assert json.loads(text)["simclr"]
    assert "simclr" in error  # what is read by people goes there
    assert call(capsys, "methods", "--json", "-", "--quiet")[2] == ""
    code, text, error = call(capsys, "methods", "simclr", "--json", "m.json")
    assert (code, error) == (0, "")
    assert text.endswith("written to m.json\n")
    assert json.loads(Path("m.json").read_text())["options"]["paper"]["temperature"] > 0
    assert call(capsys, "methods", "--quiet")[:2] == (0, "")
    assert call(capsys, "methods")[1]  # the next call speaks


def test_values_as_json_has_them():
    @dataclass
    class Found:
        path: Path
        vectors: np.ndarray
        share: float = float("nan")
        n: np.int64 | None = None

    found = shared.as_json({"a": Found(Path("x"), np.zeros((2, 3)), n=np.int64(3)), "b": ({1}, None, True)})
    assert found["a"] == {"path": "x", "vectors": {"shape": [2, 3]}, "share": None, "n": 3}
    assert found["b"] == [[1], None, True]


# ---------------------------------------------------------------- plans and repeated runs
def test_a_plan_a_run_and_its_repetition(capsys, place):
    """The plan leaves nothing; --config repeats the run, and what is given beside it wins."""
    before = {each.name for each in place.iterdir()}
    words = ("pretrain", "data.npz", "--out", "run", "--steps", "1", *TINY)
    code, text, error = call(capsys, *words, "--plan-only", "--json", "-")
    assert code == 0, error
    plan = json.loads(text)
    assert (plan["steps"], plan["used"], plan["choice"]["recipe"]["batch"]) == (1, 24, 8)
    assert "nothing was trained or written" in error
    assert {each.name for each in place.iterdir()} == before
    assert call(capsys, *words, "--quiet")[:2] == (0, "")
    code, text, error = call(capsys, "pretrain", "--config", "run/config.json", "--out", "again")
    assert code == 0, error
    one, two = (json.loads(Path(name, "config.json").read_text()) for name in ("run", "again"))
    assert one.pop("options")["model_options"] == two.pop("options")["model_options"]
    assert one == two
    # planned from its checkpoint, nothing changes
    later = ("--extend", "--steps", "5", "--plan-only", "--quiet", "--json", "-")
    code, text, error = call(capsys, "pretrain", "--config", "run", "--out", "run", *later)
    assert code == 0, error
    assert (json.loads(text)["steps"], json.loads(text)["resumed_at"]) == (5, 1)
    assert json.loads(Path("run/config.json").read_text())["end"] == {"steps": 1}
    code, text, error = call(capsys, "embed", "run", "data.npz", "--out", "v.csv", "--plan-only")
    assert code == 0, error
    assert "24 images, 3 classes" in text
    assert not Path("v.csv").exists()


def written(tmp_path, **config):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


def test_what_is_given_beside_a_configuration_wins(tmp_path):
    settings = {"batch": 64, "lr": 0.001, "config": {"temperature": 0.2, "scale": [0.5, 1.0]}}
    file = written(
        tmp_path, images="photos", method="simclr", model="vit-n/4", image_size=32, recipe="small", seed=1,
        end={"budget": 90.0}, settings=settings, precision="fp32", accumulate=1, options={"cache": True},
    )  # fmt: skip

    def repeated(*words):
        return everywhere.repeated(["pretrain", *words], cli.pretrain, file)

    words, dotted = repeated("--out", "new")
    assert words[:2] == ["pretrain", "photos"]
    assert words[-2:] == ["--out", "new"]
    assert {"--cache", "90s", "0.001", "simclr"} <= {*words}
    assert dotted["method"] == {"temperature": 0.2, "scale": (0.5, 1.0)}
    words, dotted = repeated("others", "--method", "mae", "--steps=5", "--no-cache")
    assert words[1] == "others"
    assert not {"photos", "simclr", "90s", "0.001", "64", "--cache"} & {*words}  # rates go with the method
    assert dotted["method"] == {}
    words, _ = repeated("--batch-size", "32", "--profile", "others")
    assert words[1] == "others"  # a switch takes no word
    assert "0.001" not in words
    asked = repeat.asked(Request("p", cache=True, options={"a": (1, 2)}, steps=3))
    assert asked == {"cache": True, "options": {"a": [1, 2]}}


def test_a_classifier_is_repeated(tmp_path):
    tuning = FineTuning("run", "labelled", adapt="head", shots=5, seed=2, label_columns=("a", "b"))
    asked = repeat.asked(tuning, ("images", "seed"))
    file = written(
        tmp_path, images="labelled", method="finetune", seed=2, precision="fp32", adapt={"kind": "head"},
        init={"source": "run", "digest": "x"}, options=asked,
    )  # fmt: skip
    words, _ = everywhere.repeated(["finetune", "--shots", "7"], cli.finetune, file)
    assert words[:3] == ["finetune", "run", "labelled"]
    assert words[-2:] == ["--shots", "7"]
    assert words[words.index("--label-columns") + 1 :][:2] == ["a", "b"]
    assert words.count("--shots") == 1
    file = written(
        tmp_path, images="labelled", method="finetune", model="vit-n/4", seed=2, precision="fp32",
        adapt={"kind": "lora", "rank": 4}, init={"source": "run", "head_warmup": 0.0}, end={"steps": 3},
        settings={"batch": 8, "lr": 0.01, "config": {"balance": "loss"}}, options={"init": "run"},
        supervision={"shots": 5, "fraction": None, "holdout": 0.2, "patience": 10, "label_columns": []},
    )  # fmt: skip
    words, dotted = everywhere.repeated(["finetune"], cli.finetune, file)
    assert words[:3] == ["finetune", "run", "labelled"]
    assert words[words.index("--shots") + 1] == "5"
    assert (dotted["adapt"], dotted["method"]) == ({"rank": 4}, {"balance": "loss"})


# ---------------------------------------------------------------- completion
@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_option_is_completed(shell):
    script = completion.script(cli.COMMANDS, shell, everywhere.TRAINS)
    for word in (*cli.COMMANDS, "checkpoint-every", "train-on", "plan-only", "config", "class"):
        assert word in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_and_paths(place):
    Path("c.bash").write_text(completion.script(cli.COMMANDS, "bash", everywhere.TRAINS))
    code = """
    . ./c.bash
    try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _omma; echo "${COMPREPLY[*]}"; }
    try omma pre; try omma pretrain --checkpoint-e; try omma embed R da; try omma embed R I --out ./p
    complete -p omma
    """
    told = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout
    lines = told.splitlines()
    assert lines[:4] == [
        "pretrain predict",
        "--checkpoint-every",
        "",
        "",
    ]  # none of omma's: the shell's paths
    assert lines[4] == "complete -o default -F _omma omma"
