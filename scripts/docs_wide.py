"""A hook of mkdocs: a page beside which no other page would be listed has no such list, and more room for tables."""


def on_page_markdown(markdown: str, page, config, files) -> str:
    if page.parent is None:
        page.meta["hide"] = [*page.meta.get("hide", []), "navigation"]
    return markdown
