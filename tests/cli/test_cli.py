"""The command line: every command by name, errors in one line, options handed on."""

import errno
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from omma import backbones, cli
from omma.cli import catalogue
from omma.core.errors import install_command
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
    rules = [
        re.split(r" {2,}", line.strip())
        for line in text.partition("rules of the two recipes")[2].splitlines()
    ]
    assert ["warm-up", "10 epochs", "0.1 of the run"] in rules
    assert ["gradient norm", "at most 3, each tensor", "at most 3, all gradients"] in rules
    code, text, _ = call(capsys, "doctor")
    assert code == 0
    assert "precision" in text


def test_pretrain_has_the_options_of_its_python_function():
    own, verb = (inspect.signature(f).parameters.keys() for f in (cli.pretrain, pretrain.pretrain))
    assert own - {"dotted"} == verb - {
        "listen", "options", "model_options", "adapt_options", "supervision",
    }  # fmt: skip
    assert "dotted" in own  # --method.KEY and --model.KEY


def test_models_are_listed_with_their_cost(capsys):
    code, text, _ = call(capsys, "models")
    assert code == 0
    rows = {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}
    assert rows["vit-ti/16"] == ["224", "5.52M", "1.25", "192", "yes", "2010.11929"]
    assert rows["vit-n/4"][0] == "32"
    assert rows["swin-b"][:3] == ["224", "86.74M", "15.43"]


def test_the_stored_costs_are_those_of_the_networks():
    """If this fails, `omma.cli.catalogue.main()` writes them again."""
    names = catalogue.listed(backbones.names())
    stored = {row.name: row for row in catalogue.stored()}
    assert list(stored) == names
    some = ["vit-n/4", "vitc-15mf"]
    assert [stored[name] for name in some] == list(catalogue.counted(some))


@pytest.mark.slow
def test_all_stored_costs_are_those_of_the_networks():
    assert catalogue.stored() == list(catalogue.counted(catalogue.listed(backbones.names())))


def test_models_of_another_size_are_counted(capsys, monkeypatch):
    known = ["swin-b", "swin-b/w12", "deit-s/99", "vit-n/2", "vit-n/4", "vit-ti/8", "vit-ti/16", "vit-ti/32"]
    monkeypatch.setattr(backbones, "names", lambda: known)
    code, text, _ = call(capsys, "models", "--image-size", "96", "--channels", "4")
    assert code == 0
    rows = {words[0]: words[1:] for line in text.splitlines() if (words := line.split())}
    assert rows["vit-ti/16"][:2] == ["96", "5.54M"]
    assert not rows.keys() & {"vit-ti/8", "vit-ti/32", "vit-n/2"}  # one row a size
    assert rows["deit-s/99"][:3] == ["is", "left", "out:"]
    assert catalogue.outline("swin-b/w12", None, 3)[1] == 384


def test_libraries_that_are_not_installed_are_named(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code, text, _ = call(capsys, "models")
    assert code == 0
    assert "timm:resnet18 " not in text
    assert f"the networks of timm are left out: {install_command('timm')} brings it" in text


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
        (["pretrain", ".", "--method", "dyno", "--steps", "1"], "choose dino"),
        (["pretrain", ".", "--steps", "1"], "no images in it"),
        (["evaluate", "/no/run", "."], "/no/run"),
        (["embed", "/no/run", ".", "--out", "t.parquet"], "/no/run"),
        (["export", "/no/run", "--format", "onnx", "--out", "m.onnx"], "/no/run"),
        (["export", ".", "--format", "tflite"], "'tflite' is unknown: choose safetensors"),
        (["report", "/no/run", "."], "/no/run"),
        (["methods", "dyno"], "dyno"),
        (["models", "vit-s/17b"], "vit-s/17b"),
        (["models", "vit/16"], "give depth, dim, heads, hidden too"),
        (["models", "vit-s/16", "--image-size", "0"], "--image-size 0"),
        (["evaluate", "a", "b", "--method.k", "3"], "omma pretrain"),
        (
            ["evaluate", ".", ".", "--curve", "1,2", "--metrics", "all"],
            "--metrics has no meaning with --curve",
        ),
        (["evaluate", ".", ".", "--adapt", "lora"], "--adapt says what --curve fits"),
        (
            ["evaluate", "a", "b", "--model.depth=3"],
            "--model.KEY is an option of `omma pretrain` and `omma finetune`",
        ),
        (["pretrain", ".", "--method.momentum"], "value must follow"),
        (["pretrain", ".", "--model.depth"], "value must follow"),
        (["embed", "a"], "Missing from omma embed: IMAGES --out STR; `omma embed --help`"),
        (["embed", "a", "b", "c"], "Missing from omma embed: --out STR; Unrecognized options: c; `omma"),
        (["evaluate", "a", "b", "--by", "site"], "; --by is an option of another command"),
        (["pretrain", ".", "--methd", "dino"], "Unrecognized options: --methd, dino; did you mean --method"),
        (["pretrain", ".", "--steps", "x"], "--steps: 'x' is no INT; `omma pretrain --help`"),
        (["pretrain", ".", "--steps"], "Missing value for argument '--steps'"),
        (["--option"], "Unrecognized options: --option; `omma --help`"),
    ],
)
def test_errors_are_one_line_and_status_2(capsys, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    code, _, error = call(capsys, *words)
    assert code == 2
    assert error.startswith("omma: ")
    assert error.count("\n") == 1
    assert said in error


def test_a_repeated_option_adds_its_values():
    words = ["evaluate", "R", "D", "--train-on", "a=1", "--test-on=c=3", "--train-on=b=2", "--seed", "1"]
    expected = ["evaluate", "R", "D", "--train-on", "a=1", "b=2", "--test-on", "c=3", "--seed", "1"]
    assert cli._gathered(words) == expected


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
        "adapt": {},
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
    assert "next    omma evaluate run LABELLED" in text
    assert "Not yet" in (tmp_path / "run" / "report.html").read_text()
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
    assert "Not yet" not in report
    code, text, error = call(capsys, "embed", "run", "data.npz", "--out", "t.parquet", "--device", "cpu")
    assert code == 0, error
    assert "60 vectors of 192 dimensions" in text
    code, text, error = call(capsys, "export", "run", "--format", "safetensors")
    assert code == 0, error
    assert "written to run/safetensors" in text
    assert "largest difference 0, where features reach" in text
    assert "compared on 8 images at 16x16" in text
    assert (tmp_path / "run" / "safetensors" / "model.safetensors").exists()


WITHOUT_TORCH = """
import sys
for words in {commands!r}:
    try:
        import omma, omma.cli
        omma.cli.main(words)
    except SystemExit as stop:
        print(words, stop.code)
    assert "torch" not in sys.modules, words
"""


def test_what_needs_no_torch_does_not_import_it(tmp_path):
    """Its import takes seconds; so long would a user wait to learn of a mistyped word."""
    right = [
        ["--help"],
        ["--version"],
        ["pretrain", "--help"],
        ["evaluate", "--help"],
        ["methods"],
        ["models"],
    ]
    wrong = [
        ["pretrian", "."],
        ["pretrain", "nowhere"],
        ["pretrain", ".", "--method", "dyno"],
        ["pretrain", ".", "--budget", "5"],
        ["pretrain", ".", "--out", "file"],
        ["evaluate", "nowhere", "."],
        ["evaluate", ".", "nowhere"],
        ["evaluate", ".", ".", "--protocol", "kmn"],
        ["evaluate", ".", ".", "--json", "."],
        ["embed", ".", "nowhere", "--out", "t.csv"],
        ["embed", ".", ".", "--out", "t.xls"],
        ["embed", ".", ".", "--out", "file/t.csv"],
        ["export", "nowhere", "--format", "onnx"],
        ["report", "nowhere", "."],
    ]
    (tmp_path / "file").touch()
    code = WITHOUT_TORCH.format(commands=[*right, *wrong])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ends = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert ends == [f"{words} 0" for words in right] + [f"{words} 2" for words in wrong]
    errors = done.stderr.splitlines()
    assert len(errors) == len(wrong)
    assert all(line.startswith("omma: ") for line in errors)
    assert errors[0] == "omma: 'pretrian' is no command: did you mean pretrain? `omma --help` explains them"
    assert "say the unit, 5s, 5m or 5h" in errors[3]
    assert "*.parquet, *.csv or *.npz" in errors[10]


def test_help_names_its_arguments_and_says_what_omma_is(capsys):
    _, text, _ = call(capsys, "--help")
    assert "from a folder of images" in text
    assert call(capsys)[1] == text  # without any word, too
    for command in cli.COMMANDS:
        _, text, _ = call(capsys, command, "--help")
        assert "STR STR" not in text
        assert "{None}" not in text
        assert "--remote" in text
        assert "--debug" in text
    assert "MODEL LABELLED" in call(capsys, "evaluate", "--help")[1]


@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_keeps_to_the_width(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ([], ["pretrain"], ["evaluate"], ["demo"]):
        _, text, _ = call(capsys, *command, "--help")
        assert max(map(len, text.splitlines())) <= width


def test_every_option_has_a_sentence(capsys):
    for command, function in cli.COMMANDS.items():
        documented = inspect.getdoc(function) or ""
        for name, parameter in inspect.signature(function).parameters.items():
            if name != "dotted":
                assert f"\n    {name}: " in documented, (command, name, parameter)


def test_a_folder_that_may_not_be_entered_is_named(capsys, monkeypatch):
    """Not told as a path at which there is nothing."""
    stat = os.stat

    def forbidden(path, *args, **options):
        if "locked" in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", forbidden)
    for words in (
        ["pretrain", "locked/in", "--steps", "1"],
        ["embed", "locked/run", ".", "--out", "v.csv"],
        ["embed", ".", "locked/in", "--out", "v.csv"],
        ["evaluate", "locked/run", "."],
    ):
        code, _, error = call(capsys, *words)
        assert (code, error.count("\n")) == (2, 1)
        assert re.match(r"omma: locked/\w+: permission denied; ", error), error


@pytest.mark.report
def test_the_demo_is_the_main_job(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(
        demo_digits, "make_digits",
        functools.partial(demo_digits.make_digits, n_train=200, n_test=50, size=16),
    )  # fmt: skip
    out = tmp_path / "runs" / "demo"
    code, text, _ = call(capsys, "demo", "--budget", "3s", "--out", str(out))
    assert code == 0
    assert {"model.safetensors", "report.html", "evaluation.json"} <= {f.name for f in out.iterdir()}
    assert all(word in text for word in ("pixels", "untrained", "trained", "k-NN", "linear", "report.html"))
