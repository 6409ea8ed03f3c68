"""The map's page in a real browser, in which every other host is unresolvable."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image

from omma.data.sources import collection
from omma.features.extract import FeatureSet
from omma.reporting.explore import analysis, facets, page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright (dev group) is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost"
COLOURS = {"cat": (200, 40, 40), "dog": (40, 180, 60), "</script><b>cow": (50, 60, 220)}
EACH = 20


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("no Chromium or Chrome is installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=path, args=[OFFLINE])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three classes far from each other on the map; the last image is labelled wrongly, two are the same."""
    place = tmp_path_factory.mktemp("page")
    rng = np.random.default_rng(0)
    lines, vectors = ["path,label,height"], []
    for c, (name, colour) in enumerate(COLOURS.items()):
        (place / "images" / str(c)).mkdir(parents=True)
        for k in range(EACH):
            file = f"{c}/{k:02d}.png" if (c, k) != (2, 5) else "2/odd, name.png"
            Image.new("RGB", (24, 16), colour).save(place / "images" / file)
            label = name if (c, k) != (2, EACH - 1) else "cat"
            lines.append(f'"{file}",{label},{c + k / 100}')
            centre = [np.cos(2 * c), np.sin(2 * c), 1]
            vectors.append(np.array(centre) + 0.05 * rng.normal(size=3))
    vectors[1] = vectors[0]
    (place / "images" / "labels.csv").write_text("\n".join(lines) + "\n")
    images = collection.open_images(place / "images", cache=place)
    order = [lines.index(line) - 1 for p in map(images.path, range(60)) for line in lines if p in line]
    features = FeatureSet(np.array(vectors, np.float32)[order], np.arange(60))
    found = analysis.analyse(features, images, kind="pca", clusters=3)
    known = [*facets.of_collection(images), *facets.of_analysis(found)]
    content = page.Content("Three <i>classes</i>", known, ["One note."], [("torn.png", "not an image")])
    size = page.write(place / "map.html", images, found, content)
    (place / "folder").mkdir()
    page.write_folder(place / "folder", place / "folder", images, found, content)
    assert size == (place / "map.html").stat().st_size
    return place


@pytest.fixture
def opened(browser, made):
    """Opens the page; at the end it must have logged nothing and asked for nothing."""
    noted, contexts = [], []

    def open_(name="map.html", width=1280, height=800, allowed=(), **options):
        context = browser.new_context(
            viewport={"width": width, "height": height}, reduced_motion="reduce", **options
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: noted.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: noted.append(str(error)))
        tab.on("requestfailed", lambda request: noted.append(f"failed: {request.url}"))
        own = ("data:", "blob:", (made / name).as_uri(), *allowed)
        tab.on("request", lambda r: None if r.url.startswith(own) else noted.append(f"asked for {r.url}"))
        tab.goto((made / name).as_uri())
        wait(tab, "app.map.frames > 0")
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert noted == []


def wait(tab, condition):
    """Until it holds; playwright's own way evaluates text in the page, which its policy forbids."""
    for _ in range(400):
        if tab.evaluate(condition):
            return
        tab.wait_for_timeout(25)
    raise AssertionError(f"never: {condition}")


def colours_of(tab):
    """The colours of the map's pixels and how often each occurs."""
    rows = tab.evaluate("""() => {
        const { context, canvas } = app.map.points;
        const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
        const counts = {};
        for (let k = 0; k < data.length; k += 4) {
            const key = [data[k], data[k + 1], data[k + 2]].join();
            counts[key] = (counts[key] ?? 0) + 1;
        }
        return counts;
    }""")
    return {tuple(map(int, key.split(","))): count for key, count in rows.items()}


def redrawn(tab, change):
    """Make a change, and wait for a frame after it."""
    before = tab.evaluate("app.map.frames")
    change()
    wait(tab, f"app.map.frames > {before}")


def place_of(tab, i):
    """Where image i is, in pixels of the window."""
    x, y = tab.evaluate(f"app.map.view.to(app.collection.x[{i}], app.collection.y[{i}])")
    box = tab.locator("#map").bounding_box()
    return box["x"] + x, box["y"] + y


def rgb(text):
    return tuple(int(text[k : k + 2], 16) for k in (1, 3, 5))


def test_points_are_drawn_in_the_colours_of_their_labels(opened):
    tab = opened()
    redrawn(tab, lambda: tab.select_option("#when", "never"))
    counts = colours_of(tab)
    for colour in page.LIGHT[:3]:
        assert counts.get(rgb(colour), 0) > 20 * 12  # twenty points and more of such a colour
    assert counts[(251, 251, 249)] > 0.8 * sum(counts.values())
    assert tab.inner_text("#title") == "Three <i>classes</i>"
    assert tab.locator("#legend .class .name").all_inner_texts() == ["cat", "dog", "</script><b>cow"]
    assert tab.locator("b, img").count() == 0


def test_a_click_shows_the_picture_and_its_neighbours(opened):
    tab = opened()
    tab.mouse.click(*place_of(tab, 25))
    assert "1/05.png" in tab.inner_text("#page-image")
    assert tab.locator("#page-image .thumb").count() == 10
    wait(tab, "!app.pictures.waiting.length")
    middle = tab.evaluate("""() => {
        const canvas = document.querySelector("#page-image .large");
        const { width, height } = canvas;
        return [width / height, ...canvas.getContext("2d").getImageData(width / 2, height / 2, 1, 1).data];
    }""")
    assert middle[0] == pytest.approx(1.5, abs=0.02)
    np.testing.assert_allclose(middle[1:4], COLOURS["dog"], atol=6)
    first = tab.locator("#page-image .thumb").first
    assert ".png, dog, similarity 0.99" in first.get_attribute("aria-label") or "1.00" in first.inner_text()
    first.click()
    assert "1/05.png" not in tab.inner_text("#page-image .path")
    tab.click("text=Back")
    assert tab.inner_text("#page-image .path") == "1/05.png"
    link = tab.locator("#page-image h2 a").evaluate("a => a.href")
    assert link.endswith("/images/1/05.png")


def test_search_filters_by_name_label_and_number(opened):
    tab = opened()
    for query, matches in (
        ("dog", 20), ("label:cat", 21), ("1/05", 1), ('"odd, name"', 1), ("height:>2.1", 9),
        ("dog height:<1.045", 5), ("name:png", 60), ("nothing:there", 0), ("C", 40), ("</script>", 20),
    ):  # fmt: skip
        tab.fill("#search", query)
        expected = f"{matches} match" if matches == 1 else f"{matches} matches"
        assert tab.inner_text("#found") == expected, query
    tab.fill("#search", "dog")
    assert tab.evaluate("[...app.map.look].filter(x => x === PLAIN).length") == 20
    tab.press("#search", "Enter")
    assert "dog" in tab.inner_text("#page-image")
    tab.press("#search", "Escape")
    assert tab.evaluate("[...app.map.look].every(x => x === PLAIN)")


def test_the_lasso_selects_what_is_inside(opened):
    tab = opened()
    places = [place_of(tab, i) for i in range(20, 40)]
    left, right = min(x for x, _ in places) - 9, max(x for x, _ in places) + 9
    top, low = min(y for _, y in places) - 9, max(y for _, y in places) + 9
    tab.click("#lasso")
    tab.mouse.move(left, top)
    tab.mouse.down()
    for corner in ((right, top), (right, low), (left, low)):
        tab.mouse.move(*corner, steps=3)
    tab.mouse.up()
    assert tab.evaluate("app.selected") == list(range(20, 40))
    assert tab.inner_text("#page-selection h2") == "20 images selected"
    assert tab.locator("#page-selection .row").count() == 20
    with tab.expect_download() as download:
        tab.click("text=Download CSV")
    text = download.value.path().read_text(encoding="utf-8")
    assert text.splitlines()[0].startswith("path,label,")
    assert len(text.splitlines()) == 21
    assert text.splitlines()[1].startswith("1/00.png,dog,")
    tab.click("#page-selection >> text=Clear")
    assert tab.evaluate("app.selected.length") == 0


def test_the_legend_hides_classes(opened):
    tab = opened()
    tab.locator("#legend .class").nth(1).click()
    assert tab.evaluate("[...app.map.look].filter(x => x === HIDDEN).length") == 20
    assert tab.locator("#legend .class").nth(1).get_attribute("aria-pressed") == "false"
    tab.click("text=Show all")
    assert tab.evaluate("[...app.map.look].every(x => x === PLAIN)")
    tab.locator("#legend .only").nth(0).focus()
    tab.keyboard.press("Enter")
    assert tab.evaluate("[...app.map.look].filter(x => x === PLAIN).length") == 21
    tab.select_option("#facet", label="height")
    assert tab.locator("#legend .scale").count() == 1
    assert tab.locator("#legend .ends").inner_text().split() == ["≤", "0.01", "≥", "2.18"]


def test_the_keyboard_does_it_all(opened):
    tab = opened()
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "search"
    reached = []
    for _ in range(12):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id || document.activeElement.className"))
    assert [name for name in reached if name in ("theme", "facet", "map", "in")] == [
        "theme",
        "facet",
        "map",
        "in",
    ]
    tab.focus("#map")
    before = tab.evaluate("[app.map.view.x, app.map.view.scale]")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("+")
    wait(tab, f"app.map.view.scale > {before[1]} * 1.5")
    assert tab.evaluate("app.map.view.x") > before[0]
    tab.keyboard.press("0")
    wait(tab, f"Math.abs(app.map.view.scale - {before[1]}) < 1")
    tab.keyboard.press("Enter")
    first = tab.evaluate("app.current")
    tab.keyboard.press("Shift+ArrowUp")
    second = tab.evaluate("app.current")
    assert first >= 0
    assert second not in (first, -1)
    assert tab.evaluate(f"app.collection.y[{second}] > app.collection.y[{first}]")
    tab.keyboard.press("v")
    assert tab.evaluate("app.selected.length") == 60
    tab.focus("#tab-selection")
    tab.keyboard.press("ArrowRight")
    assert tab.evaluate("document.activeElement.id") == "tab-pairs"
    assert tab.is_visible("#page-pairs")
    tab.keyboard.press("Escape")
    assert tab.evaluate("[app.selected.length, app.current]") == [0, second]
    tab.keyboard.press("Escape")
    assert tab.evaluate("app.current") == -1
    outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_duplicates_suspects_and_notes_are_listed(opened):
    tab = opened()
    tab.click("#tab-pairs")
    assert "cosine 1.000" in tab.locator("#page-pairs .row").first.inner_text()
    names = tab.locator("#page-pairs .row").first.inner_text()
    assert "0/00.png" in names
    assert "0/01.png" in names
    tab.click("#tab-suspects")
    assert "1 label that neighbours do not share" in tab.inner_text("#page-suspects")
    row = tab.locator("#page-suspects .row").first.inner_text()
    assert "2/19.png" in row
    assert "labelled cat" in row
    assert "100 % of its neighbours: </script><b>cow" in row
    tab.click("#tab-about")
    assert "One note." in tab.inner_text("#page-about")
    assert "torn.png" in tab.inner_text("#page-about")


@pytest.mark.parametrize(
    ("width", "height"), [(1600, 1000), (640, 400), (390, 844)], ids=["80 %", "200 %", "phone"]
)
def test_it_fits_windows_of_all_sizes(opened, width, height):
    """80 % and 200 % zoom of a window of 1280 x 800 are windows of these sizes to the page."""
    tab = opened(width=width, height=height)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    box = tab.locator("#map").bounding_box()
    assert box["width"] >= min(width * 0.45, 390)
    assert box["height"] >= 200
    for name in ("#search", "#facet", "#in", "#lasso", "#tab-about"):
        part = tab.locator(name).bounding_box()
        assert part["x"] >= 0
        assert part["x"] + part["width"] <= width + 1, name
    tab.locator("#map").scroll_into_view_if_needed()
    tab.mouse.click(*place_of(tab, 25))
    assert "1/05.png" in tab.inner_text("#page-image")
    assert tab.locator("#page-image .thumb").count() == 10


def test_the_dark_theme_follows_the_system_and_the_button(opened):
    tab = opened(color_scheme="dark")
    redrawn(tab, lambda: tab.select_option("#when", "never"))
    assert colours_of(tab).get(rgb(page.DARK[0]), 0) > 200
    redrawn(tab, lambda: tab.click("#theme"))
    assert colours_of(tab).get(rgb(page.LIGHT[0]), 0) > 200


def test_a_folder_shows_the_same_with_thumbnails_beside_it(opened, made):
    tab = opened("folder/index.html", allowed=[(made / "folder" / "thumbnails").as_uri()])
    tab.evaluate("app.pick(25)")
    wait(tab, "!app.pictures.waiting.length")
    assert tab.evaluate("app.pictures.sheets.get(0) !== null")
    shown = Image.open(io.BytesIO(tab.locator("#page-image .large").screenshot())).convert("RGB")
    np.testing.assert_allclose(shown.getpixel((shown.width // 2, shown.height // 2)), COLOURS["dog"], atol=8)
