"""Six usual tasks with omma and with other libraries: lines of code, and whether they run.

    python benchmarks/beside.py IMAGES --python PEERS --json FILE [--only LIBRARY ...]
    python benchmarks/beside.py --table FILE  # into docs/beside.md

IMAGES holds train/CLASS/ and val/CLASS/, as the unpacked hymenoptera_s192.zip. PEERS is the Python of an
environment with lightly, timm, lightly-train and scikit-learn, which need not have omma. omma's snippets are
those of docs/beside.md and run in this Python; the others' are benchmarks/beside/LIBRARY/TASK.py. A few
images of each class are copied to a folder of their own, where every snippet is a script, run task by task.
The code is written from each library's documentation, as short as its ruff-formatted lines allow.

Counted are lines, formatted by ruff at 100 characters, that are neither blank nor comments.
"""

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tables import write_between

ROOT = Path(__file__).parents[1]
PAGE, SNIPPETS = ROOT / "docs" / "beside.md", ROOT / "benchmarks" / "beside"
BEGIN, END = "<!-- the trial, by benchmarks/beside.py -->", "<!-- end of the trial -->"
GIVEN = re.compile(r'^```python title="network.py"\n(.*?)^```', re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
TASKS = {
    "folder": "pretrain on a folder",
    "module": "your own module",
    "loop": "DINO in your own loop",
    "embed": "embed files, tensors, PIL, arrays",
    "judge": "judge feature arrays",
    "finetune": "fine-tune and predict",
}
PEERS = {"lightly": "lightly", "timm": "timm", "lightly_train": "LightlyTrain"}
# how a peer does it, where it is not by a call of its own
HOW = {
    ("lightly", "folder"): "SimCLR, ResNets only",
    ("lightly", "module"): "SimCLR, a loop that you write",
    ("lightly", "loop"): "from its parts",
    ("lightly", "embed"): "not offered: own code",
    ("lightly", "judge"): "its k-NN and Lightning probe",
    ("lightly", "finetune"): "its Lightning module, own prediction",
    ("timm", "embed"): "its transform, own code",
    ("timm", "judge"): "not offered: scikit-learn",
    ("timm", "finetune"): "a loop that you write",
    ("lightly_train", "module"): "a wrapper class",
    ("lightly_train", "embed"): "files only: own code",
    ("lightly_train", "judge"): "not offered: scikit-learn",
}
PACKAGES = ("lightly", "timm", "lightly-train", "scikit-learn", "torch")
LIBRARIES = ("omma", *PEERS)
LIMIT = 900  # seconds for one snippet


def given() -> str:
    """network.py, as omma's snippets have it."""
    (text,) = GIVEN.findall(PAGE.read_text())
    return text


def ours() -> dict[str, str]:
    """omma's snippet of each task."""
    return dict(zip(TASKS, BLOCK.findall(PAGE.read_text()), strict=True))


def theirs(peer: str) -> dict[str, str]:
    """A library's snippet of each task that it has one for."""
    files = {task: SNIPPETS / peer / f"{task}.py" for task in TASKS}
    return {task: file.read_text() for task, file in files.items() if file.exists()}


def unmarked(network: str) -> str:
    """network.py without omma."""
    return "".join(line for line in network.splitlines(keepends=True) if "omma" not in line)


def formatted(codes: Sequence[str]) -> list[str]:
    """Each code by ruff, 100 characters a line."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{k}.py" for k in range(len(codes))]
        for file, code in zip(files, codes, strict=True):
            file.write_text(code)
        command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", "100", folder]
        subprocess.run(command, capture_output=True, text=True, check=True)
        return [file.read_text() for file in files]


def lines(code: str) -> int:
    """Lines that are neither blank nor comments."""
    stripped = [line.strip() for line in code.splitlines()]
    return sum(line != "" and not line.startswith("#") for line in stripped)


def counts() -> dict[str, dict[str, int]]:
    """Lines of every snippet by library and task; omma's marks in network.py are lines, too."""
    found = {"omma": ours(), **{peer: theirs(peer) for peer in PEERS}}
    keys = [(who, task) for who, codes in found.items() for task in codes]
    codes = formatted([found[who][task] for who, task in keys])
    table: dict[str, dict[str, int]] = {who: {} for who in found}
    for (who, task), code in zip(keys, codes, strict=True):
        table[who][task] = lines(code)
    table["omma"]["module"] += len(given().splitlines()) - len(unmarked(given()).splitlines())
    return table


def prepare(images: Path, folder: Path, each: int) -> None:
    """What the snippets begin with, of `each` images a class: twice as many to train on as to test."""
    for part, number in (("train", each), ("val", each // 2)):
        for label in sorted(path for path in (images / part).iterdir() if path.is_dir()):
            target = folder / "labelled" / part / label.name
            target.mkdir(parents=True)
            for file in sorted(label.iterdir())[:number]:
                shutil.copy(file, target)
    shutil.copytree(folder / "labelled" / "train", folder / "photos")
    photos, labelled = (sorted((folder / name).rglob("*.jpg")) for name in ("photos", "labelled"))

    def pixels(file: Path, size: int) -> np.ndarray:
        return np.asarray(Image.open(file).convert("RGB").resize((size, size)))

    np.save(folder / "photos.npy", np.stack([pixels(file, 96) for file in photos]).transpose(0, 3, 1, 2))
    np.save(folder / "features.npy", np.float32([pixels(file, 8).ravel() / 255 for file in labelled]))
    classes = sorted({file.parent.name for file in labelled})
    np.save(folder / "labels.npy", np.array([classes.index(file.parent.name) for file in labelled]))
    Image.open(photos[0]).save(folder / "a.jpg")
    Image.open(photos[-1]).save(folder / "b.png")


def files(folder: Path) -> dict[Path, int]:
    """When each was written, in ns."""
    return {file: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def run(python: str, code: str, folder: Path) -> str:
    """Run a script in the folder; "" or the last line of what went wrong."""
    (folder / "snippet.py").write_text(code)
    before = files(folder)
    done = subprocess.run(
        [python, "snippet.py"], cwd=folder, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    wrote = {
        file for file in folder.rglob("*") if file.is_file() and file.stat().st_mtime_ns != before.get(file)
    }
    return "" if done.stdout.strip() or wrote else "printed and wrote nothing"


def trial(images: Path, peers: str, each: int, only: Sequence[str]) -> dict[str, Any]:
    """The snippets of these libraries, in a fresh folder for each library."""
    failed: dict[str, dict[str, str]] = {}
    for who in only:
        mine = who == "omma"
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepare(images, folder, each)
            (folder / "network.py").write_text(given() if mine else unmarked(given()))
            failed[who] = {}
            for task, code in (ours() if mine else theirs(who)).items():
                failed[who][task] = run(sys.executable if mine else peers, code, folder)
                print(who, task, failed[who][task] or "ran", flush=True)
    asked = f"from importlib.metadata import version as v; print(*[v(p) for p in {PACKAGES}])"
    versions = subprocess.run([peers, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    return {
        "date": date.today().strftime("%-d %B %Y"),
        "python": platform.python_version(),
        "machine": f"{platform.system()}, {platform.machine()}",
        "images": each,
        "versions": dict(zip(PACKAGES, versions, strict=True)),
        "failed": failed,
    }


def cell(who: str, task: str, number: Mapping[str, int], failed: Mapping[str, str]) -> str:
    """Lines and how, or that there is no such thing."""
    if task not in number:
        return "not offered"
    how = HOW.get((who, task), "")
    failure = f"failed: `{failed[task]}`" if failed[task] else ""
    return "; ".join(part for part in (str(number[task]), how, failure) if part)


def table(result: Mapping[str, Any]) -> list[str]:
    """The table of lines and the conditions, in Markdown."""
    number, failed = counts(), result["failed"]
    rows = ["| lines | omma | " + " | ".join(PEERS.values()) + " |", "|---|---|---|---|---|"]
    for task, words in TASKS.items():
        cells = [cell(who, task, number[who], failed[who]) for who in LIBRARIES]
        rows.append(f"| {words} | " + " | ".join(cells) + " |")
    errors = [error for by_task in failed.values() for error in by_task.values()]
    ran = f"{sum(not error for error in errors)} of {len(errors)} snippets ran"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    where = f"Python {result['python']}, {result['machine']}, without a GPU"
    return [*rows, "", f"On {result['date']}, {ran}.", f"{where}; {versions}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, nargs="?", help="holds train/CLASS/ and val/CLASS/")
    parser.add_argument("--python", default=sys.executable, help="of the environment with the others")
    parser.add_argument("--each", type=int, default=64, help="images of a class to train on")
    parser.add_argument("--only", nargs="+", choices=LIBRARIES, default=LIBRARIES, help="run these alone")
    parser.add_argument("--json", type=Path, help="write the result there, over what it has of these")
    parser.add_argument("--table", type=Path, help="write the table of this result into the page")
    args = parser.parse_args()
    if args.table:
        write_between(PAGE, BEGIN, END, table(json.loads(args.table.read_text())))
        return
    if args.images is None:
        parser.error("give the folder of images, or --table")
    result = trial(args.images, args.python, args.each, args.only)
    if args.json:
        earlier = json.loads(args.json.read_text())["failed"] if args.json.exists() else {}
        args.json.write_text(json.dumps({**result, "failed": {**earlier, **result["failed"]}}, indent=1))


if __name__ == "__main__":
    main()
