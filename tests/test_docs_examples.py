"""Every Python example of README and docs runs, in a folder that has what the pages speak of."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import omma
from omma import backbones, weights
from omma.core.protocols import Preprocess

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FILE = re.compile(r'^```python title="(\w+\.py)"\n(.*?)^```', re.MULTILINE | re.DOTALL)
# pages whose examples another test runs, with what they need
ELSEWHERE = {"own_loop.md": "test_own_loop.py", "beside.md": "test_beside.py"}
COMPILED = {"ray_serve.md": "starts a cluster with GPUs"}
# what takes long says the same when it is short
TINY = 'precision="fp32", workers=0'
SHORTER = {
    'budget="10m"': f'steps=1, batch_size=8, model="vit-n/8", model_options={{"depth": 1}}, {TINY}',
    "epochs=10": f"epochs=1, {TINY}",
    '"map.html"': '"map.html", layout="pca"',
    'omma.evaluate("runs/mine", "labelled/")': 'omma.evaluate("runs/mine", "labelled/", protocols=["knn"])',
    'align="coral")': 'align="coral", floors=False)',
}
SIZE = 24


def examples(page: Path) -> list[str]:
    return BLOCK.findall(page.read_text())


WITH_CODE = [page for page in PAGES if examples(page) and page.name not in ELSEWHERE]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 156, (SIZE, SIZE, 3), dtype=np.uint8)
    pixels[:, :, path.parent.name == "dog"] += 100  # dogs are green, all else is red
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos, labels, an encoder with random weights, and an index: what the examples start from."""
    folder = tmp_path_factory.mktemp("docs")
    names = [f"{label}/{n}.png" for label in ("cat", "dog") for n in range(10)]
    rows = ["path,label,site"]
    for seed, name in enumerate(names):
        picture(folder / "photos" / name, seed)
        picture(folder / "labelled" / name, 100 + seed)
        rows.append(f"labelled/{name},{name[:3]},{'north' if seed % 2 else 'south'}")
    (folder / "labelled.csv").write_text("\n".join(rows) + "\n")
    for seed, name in enumerate(
        ("a.jpg", "b.png", "plates/p1/t0.png", "plates/p1/t1.png", "plates/p2/t0.png")
    ):
        picture(folder / name, 200 + seed)
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/8", image_size=SIZE, depth=1, dim=24, heads=2, hidden=48)
    preprocess = Preprocess(
        size=SIZE, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
    )
    weights.save(folder / "runs" / "photos", encoder, preprocess, {"method": "none"})
    return folder


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_examples_run(page: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("photos", "labelled", "labelled.csv", "a.jpg", "b.png", "plates"):
        (tmp_path / name).symlink_to(photos / name)
    monkeypatch.chdir(tmp_path)
    for file, content in FILE.findall(page.read_text()):
        (tmp_path / file).write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, Path(file).stem, raising=False)
    first = page.name == "python.md"  # which makes runs/photos itself
    if not first:
        (tmp_path / "runs" / "photos").mkdir()
        for file in (photos / "runs" / "photos").iterdir():
            (tmp_path / "runs" / "photos" / file.name).write_bytes(file.read_bytes())
    if page.name == "search.md":  # shows what an index holds before it makes one
        omma.index("runs/photos", "photos/", "photos.index")
    names: dict = {}
    for block in examples(page):
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        torch.set_num_threads(1)  # Numba's parallel loops (UMAP, search) raise it for the whole process
        code = compile(block, str(page), "exec")
        if page.name not in COMPILED:
            exec(code, names)
    assert names.keys() - {"__builtins__"} or page.name in COMPILED


def test_pages_that_another_test_runs_are_named_there() -> None:
    for page, test in ELSEWHERE.items():
        assert f'"{page}"' in (ROOT / "tests" / test).read_text()
