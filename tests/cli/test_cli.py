"""The command line: every command by name, errors in one line, options handed on."""

import functools
import inspect
import subprocess
import sys

import numpy as np
import pytest

from omma import backbones, cli
from omma.data.sources import demo_digits, remote
from omma.verbs import pretrain


def call(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(list(words))
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_methods_and_doctor(capsys):
    code, text, _ = call(capsys, "methods")
    assert code == 0
    assert {"dino", "mae", "simclr"} <= {line.split()[0] for line in text.splitlines() if line.strip()}
    code, text, _ = call(capsys, "methods", "dino")
    assert code == 0
    assert "2104.14294" in text
    assert "teacher_temp" in text
    code, text, _ = call(capsys, "doctor")
    assert code == 0
    assert "precision" in text


def test_pretrain_has_the_options_of_its_python_function():
    own, verb = (inspect.signature(f).parameters.keys() for f in (cli.pretrain, pretrain.pretrain))
    assert own - {"dotted"} == verb - {"listen", "options", "model_options"}
    assert "dotted" in own  # --method.KEY and --model.KEY


def test_models_are_listed_with_their_cost(capsys, monkeypatch):
    known = [
        "swin-b",
        "swin-b/w12",
        "deit-s/99",
        "vit-n/2",
        "vit-n/4",
        "vit-ti/8",
        "vit-ti/16",
        "vit-ti/32",
    ]
    monkeypatch.setattr(backbones, "names", lambda: known)
    code, text, _ = call(capsys, "models")
    assert code == 0
    rows = {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}
    assert rows["vit-ti/16"] == ["224", "5.52M", "1.25", "192", "yes", "2010.11929"]
    assert rows["vit-n/4"][0] == "32"
    assert rows["swin-b"][:3] == ["224", "86.74M", "15.43"]
    assert rows["swin-b/w12"][0] == "384"
    assert not rows.keys() & {"vit-ti/8", "vit-ti/32", "vit-n/2"}  # one row a size
    assert rows["deit-s/99"][:3] == ["is", "left", "out:"]


def test_one_model_is_explained(capsys):
    code, text, _ = call(capsys, "models", "vit-b/16", "--image-size", "384", "--channels", "4")
    assert code == 0
    told = {
        line.split("  ")[0].strip(): line.split("  ", 1)[1].strip()
        for line in text.splitlines()
        if "  " in line
    }
    assert told["for"] == "384 x 384 px, 4 channels"
    assert told["parameters"] == "86.29M"
    assert told["weights"] == "329 MiB in fp32, 165 MiB in bf16"
    assert told["multiply-adds"] == "55.60 G an image"
    assert told["features"] == "768 wide; 24 x 24 patches of 16 px, 1 before them"
    assert told["layers"] == "12"
    assert "padded" in told["other sizes"]
    assert told["registers"] == "0"
    assert "arXiv 2010.11929" in text
    code, text, _ = call(capsys, "models", "cait-xxs24", "--image-size", "100")
    assert code == 0
    assert "7 x 7 patches" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrain", "/nowhere/at/all"], "/nowhere/at/all"),
        (["pretrain", ".", "--method", "dyno", "--steps", "1"], "."),
        (["evaluate", "/no/run", "."], "/no/run"),
        (["embed", "/no/run", ".", "--out", "t.parquet"], "/no/run"),
        (["export", "/no/run", "--format", "onnx", "--out", "m.onnx"], "/no/run"),
        (["export", "/no/run", "--format", "tflite"], "'tflite' is unknown: choose safetensors"),
        (["report", "/no/run", "."], "/no/run"),
        (["methods", "dyno"], "dyno"),
        (["models", "vit-s/17b"], "vit-s/17b"),
        (["models", "vit/16"], "give depth, dim, heads, hidden too"),
        (["models", "vit-s/16", "--image-size", "0"], "--image-size 0"),
        (["evaluate", "a", "b", "--method.k", "3"], "omma pretrain"),
        (["evaluate", "a", "b", "--model.depth=3"], "--model.KEY is an option of `omma pretrain`"),
        (["pretrain", ".", "--method.momentum"], "value must follow"),
        (["pretrain", ".", "--model.depth"], "value must follow"),
    ],
)
def test_errors_are_one_line_and_status_2(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, _, error = call(capsys, *words)
    assert code == 2
    assert error.startswith("omma: ")
    assert error.count("\n") == 1
    assert said in error


def test_remote_is_for_every_command(capsys, monkeypatch):
    monkeypatch.setenv("OMMA_REMOTE", "")
    code, _, _ = call(capsys, "methods", "--remote")
    assert code == 0
    assert remote.allowed()
    monkeypatch.setenv("OMMA_REMOTE", "0")
    assert not remote.allowed()


def test_debug_shows_the_traceback(capsys):
    code, _, error = call(capsys, "methods", "dyno", "--debug")
    assert code == 2
    assert "Traceback" in error


def test_options_of_method_and_model_are_taken_out_of_the_words():
    words, options = cli._dotted(
        ["pretrain", "x", "--method.teacher-temp", "0.05", "--seed", "1", "--method.centring=off",
         "--model.layer-scale", "1e-5"]
    )  # fmt: skip
    assert words == ["pretrain", "x", "--seed", "1"]
    assert options == {
        "method": {"teacher_temp": "0.05", "centring": "off"},
        "model": {"layer_scale": "1e-5"},
    }


@pytest.mark.report
def test_pretrain_evaluate_embed_report(capsys, tmp_path, monkeypatch):
    """The whole path by its commands, as the README has it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 100, (60, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(60) % 3
    pixels[labels == 1] += 100
    pixels[labels == 2, :8] += 100
    np.savez("data.npz", images=pixels, labels=labels)
    code, text, error = call(
        capsys, "pretrain", "data.npz", "--out", "run", "--steps", "2", "--model", "vit-n/4",
        "--method", "dino",
        "--method.local-crops", "1", "--method.prototypes", "32", "--batch-size", "8", "--device", "cpu",
        "--model.layer-scale", "0.1", "--profile",
    )  # fmt: skip
    assert code == 0, error
    assert all(part in text for part in ("student forward", "teacher forward", "of this machine's limit"))
    assert "vit-n/4 at 16 px, layer_scale 0.1, " in text
    assert "done: 2 steps" in text
    code, _, error = call(capsys, "pretrain", "data.npz", "--model", "vit-n/4", "--model.colour", "1")
    assert code == 2
    assert error.startswith("omma: --model.colour: vit-n/4 has no such option")
    code, text, error = call(capsys, "evaluate", "run", "data.npz", "--json", "out.json", "--device", "cpu")
    assert code == 0, error
    assert "untrained" in text
    assert "trained" in text
    assert (tmp_path / "out.json").exists()
    report = (tmp_path / "run" / "report.html").read_text()
    assert "k-NN" in report
    code, text, error = call(capsys, "embed", "run", "data.npz", "--out", "t.parquet", "--device", "cpu")
    assert code == 0, error
    assert "60 vectors of 192 dimensions" in text
    code, text, error = call(capsys, "export", "run", "--format", "safetensors")
    assert code == 0, error
    assert "written to run/safetensors" in text
    assert "largest difference 0, where features reach" in text
    assert "compared on 8 images at 16x16" in text
    assert (tmp_path / "run" / "safetensors" / "model.safetensors").exists()


def test_starting_up_does_not_import_torch():
    code = "import sys, omma.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_report_shows_the_headline_k_alone(tmp_path):
    """Of several k only k = 20 is in the table, as in what `omma evaluate` prints."""
    import json

    from omma.pretraining.folder import EVALUATION, RunFolder
    from omma.reporting import run_report

    entry = {"subject": "trained", "protocol": "knn", "metric": "top1"}
    entries = [{**entry, "value": k / 1000, "k": k, "settings": {}} for k in (10, 20, 100)]
    (tmp_path / EVALUATION).write_text(
        json.dumps({"results": [*entries, {**entry, "protocol": "linear", "value": 0.5}]})
    )
    results = run_report._results(RunFolder(tmp_path))
    assert [r.value for r in results] == [0.02, 0.5]


@pytest.mark.report
def test_the_demo_is_the_main_job(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo_digits, "make_digits", functools.partial(demo_digits.make_digits, n_train=300, n_test=100)
    )
    out = tmp_path / "runs" / "demo"
    code, text, _ = call(capsys, "demo", "--budget", "3s", "--out", str(out))
    assert code == 0
    assert {"model.safetensors", "report.html", "evaluation.json"} <= {f.name for f in out.iterdir()}
    assert all(word in text for word in ("pixels", "untrained", "trained", "k-NN", "linear", "report.html"))
