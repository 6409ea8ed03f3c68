"""A hook of mkdocs: a page without siblings has no list of them, and more room for tables."""


def on_page_markdown(markdown: str, page, config, files) -> str:
    if page.parent is None:
        page.meta["hide"] = [*page.meta.get("hide", []), "navigation"]
    return markdown
