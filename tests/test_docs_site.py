"""The documentation as a site: every page is in its navigation, and it is short, light and self-contained."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
PLAIN = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("index", "tutorial", "numbers"))]
LONGEST = 25  # words of a sentence on those pages
KIB = 1024


def pages(nav: list | dict | str) -> list[str]:
    """The files that a part of the navigation names."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages(part)]


def sentences(text: str) -> list[str]:
    """Sentences of running text: without code, tables, headings and the targets of links."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(\||#|!\[).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", re.sub(r"`[^`]*`", "code", text))
    blocks = re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text)
    return [
        each for block in blocks for each in re.split(r"(?<=[.!?])[\"*)]*\s", " ".join(block.split())) if each
    ]


def test_every_page_is_in_the_navigation_and_no_other() -> None:
    listed = pages(SITE["nav"])
    assert len(set(listed)) == len(listed)
    assert set(listed) == {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}


def test_the_site_loads_nothing_from_elsewhere() -> None:
    assert SITE["theme"]["font"] is False
    assert not SITE.keys() & {"repo_url", "extra_javascript", "extra_css", "google_analytics"}
    assert "analytics" not in SITE["extra"]
    assert SITE["hooks"][0] == "scripts/docs_offline.py"  # which looks at what was built
    assert SITE["strict"]


def test_the_build_refuses_what_is_loaded_from_elsewhere() -> None:
    scope: dict = {}
    exec((ROOT / "scripts" / "docs_offline.py").read_text(), scope)
    foreign = scope["foreign"]
    assert (
        foreign(
            '<a href="https://arxiv.org/abs/1"><link rel="canonical" href="https://x.org/"><img src="a.png">'
        )
        == []
    )
    assert foreign('<img alt="" src="https://x.org/a.png">') == ["https://x.org/a.png"]
    assert foreign('<link rel="stylesheet" href="//x.org/a.css"><script src="http://x.org/a.js">') == [
        "//x.org/a.css",
        "http://x.org/a.js",
    ]


@pytest.mark.parametrize("page", PLAIN, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    found = sentences(page.read_text())
    assert len(found) > 10
    assert [each for each in found if len(each.split()) >= LONGEST] == []


def test_long_sentences_are_found() -> None:
    text = "# A b\n\nOne two.\nThree `a b` four. - no\n\n- five [six](x y.md)\n- seven\n\n| a. b |\n"
    assert sentences(text) == ["One two.", "Three code four.", "- no", "- five [six]", "- seven"]


def test_pictures_are_small_and_used() -> None:
    pictures = sorted((DOCS / "pictures").iterdir())
    sizes = [picture.stat().st_size for picture in pictures]
    assert max(sizes) < 150 * KIB
    assert sum(sizes) < 1024 * KIB
    text = "".join(page.read_text() for page in [ROOT / "README.md", *DOCS.glob("*.md")])
    assert [picture.name for picture in pictures if f"pictures/{picture.name})" not in text] == []


def test_every_public_name_is_in_the_reference() -> None:
    import omma

    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    assert [
        name
        for name in omma.__all__
        if name[0] != "_" and not re.search(rf"(::: |## )omma\.[\w.]*\b{name}\b", text)
    ] == []


def test_the_changelog_has_the_usual_form() -> None:
    """keepachangelog.com: under each release only these headings, each once."""
    releases = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]
    assert releases
    for release in releases:
        kinds = re.findall(r"^### (.*)", release, re.MULTILINE)
        assert len(set(kinds)) == len(kinds)
        assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
