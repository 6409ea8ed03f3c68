"""A hook of mkdocs: the build fails if a page would load anything from elsewhere."""

import re

TAG = re.compile(r"<(?:script|img|iframe|source|video|audio|link)\b[^>]*>", re.IGNORECASE)
ADDRESS = re.compile(r"""\b(?:src|href)\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""", re.IGNORECASE)


def foreign(page: str) -> list[str]:
    """Addresses of other hosts that a browser fetches by itself; links to click are none."""
    tags = (tag for tag in TAG.findall(page) if 'rel="canonical"' not in tag)
    return [address for tag in tags for address in ADDRESS.findall(tag)]


def on_post_page(output: str, page, config) -> str:
    if found := foreign(output):
        raise SystemExit(f"{page.file.src_path}: loads {', '.join(found)}")
    return output
