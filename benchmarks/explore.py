"""How large the map's page is, how soon it opens, and how many frames a second a drag of the map has.

    python benchmarks/explore.py --images 20000
    python benchmarks/explore.py --images 100000 --folder --json explore.json

Images and vectors are made: 40 groups in 128 dimensions, pictures of 64 pixels with noise (which take more
bytes than photographs). A headless Chromium without a graphics card opens the page and drags the map for two
seconds at each of three zooms, where every frame draws all that is seen.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from omma.data.sources.collection import ArrayImages
from omma.features.extract import FeatureSet
from omma.reporting.explore import analysis, facets, outcome, page
from omma.reporting.explore.target import checked

DRAG = """async (seconds) => {
    const times = [];
    let last = await new Promise(requestAnimationFrame);
    const start = last;
    for (let k = 0; last - start < 1000 * seconds; k++) {
        app.map.view.move(k % 60 < 30 ? 8 : -8, 0);
        app.map.redraw();
        const now = await new Promise(requestAnimationFrame);
        times.push(now - last);
        last = now;
    }
    return times;
}"""


def made(n: int, seed: int = 0) -> tuple[ArrayImages, FeatureSet]:
    """A collection of n images in 40 groups, with labels, and its vectors."""
    rng = np.random.default_rng(seed)
    group = rng.integers(0, 40, n)
    vectors = (2 * rng.normal(size=(40, 128))[group] + rng.normal(size=(n, 128))).astype(np.float32)
    colours = rng.integers(40, 216, (40, 1, 1, 3))
    noise = rng.integers(-40, 40, (997, 64, 64, 3))
    pixels = np.empty((n, 64, 64, 3), np.uint8)
    for i in range(n):
        pixels[i] = colours[group[i]] + noise[i % 997]
    images = ArrayImages(pixels, labels=group, classes=tuple(f"group {k}" for k in range(40)))
    return images, FeatureSet(vectors, np.arange(n))


def measured(n: int, folder: bool, layout: str, place: Path) -> dict[str, object]:
    """Bytes, seconds and frames of one page."""
    images, features = made(n)
    start = time.perf_counter()
    found = analysis.analyse(features, images, kind=layout)  # pyright: ignore
    analysed = time.perf_counter()
    known = facets.joined(facets.of_collection(images), facets.of_analysis(found))
    out = place / ("map" if folder else "map.html")
    content = page.Content(f"{n:,} images", known, [found.layout.note])
    size = outcome.write(checked(out, "page"), images, features.vectors, found, content)
    written = time.perf_counter()
    facts: dict[str, object] = {
        "images": n, "megabytes": round(size / 1e6, 1), "seconds_analysis": round(analysed - start, 1),
        "seconds_writing": round(written - analysed, 1),
    }  # fmt: skip
    return facts | browsed(out / "index.html" if folder else out)


def browsed(file: Path) -> dict[str, object]:
    """Seconds until the map is drawn, and the frames of drags at three zooms."""
    from playwright.sync_api import sync_playwright

    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise SystemExit("no Chromium or Chrome is installed")
    facts: dict[str, object] = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path)
        tab = browser.new_page(viewport={"width": 1440, "height": 900})
        start = time.perf_counter()
        tab.goto(file.absolute().as_uri())
        while not tab.evaluate("app.map.frames"):
            tab.wait_for_timeout(20)
        facts["seconds_to_open"] = round(time.perf_counter() - start, 2)
        for zoom in (1, 4, 16):
            tab.evaluate(f"app.map.view.set({{x: .5, y: .5, scale: app.map.view.fitted * {zoom}}})")
            times = tab.evaluate(DRAG, 2)
            facts[f"zoom_{zoom}"] = {
                "frames_a_second": round(1000 / statistics.mean(times), 1),
                "slowest_of_20_ms": round(float(np.percentile(times, 95)), 1),
                "pictures": tab.evaluate("app.map.shown.length"),
            }
        browser.close()
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--folder", action="store_true", help="thumbnails beside the page")
    parser.add_argument("--layout", default="pca", choices=("pca", "umap"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        facts = measured(options.images, options.folder, options.layout, Path(place))
    for name, value in facts.items():
        print(f"{name:18} {value}")
    if options.json:
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
