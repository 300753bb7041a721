"""Pages of the site made from README.md, CONTRIBUTING.md and CHANGELOG.md, so that their text is written once.

Links between these files and the pages in docs/ are rewritten in both directions.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing/index.md",
    "CHANGELOG.md": "contributing/changelog.md",
}
LINK = re.compile(r"(?<=\]\()(?P<target>[^)#\s:]+)(?=[)#])")
IMAGE = re.compile(r"(?<=src=\")(?P<target>[^\":]+)(?=\")")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from files of the repository's root."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=with_site_links(text, source, page)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links from a page in docs/ to a file of the repository's root at the page that is made from it."""
    path = page.file.src_uri
    return markdown if path in PAGES.values() else with_site_links(markdown, f"docs/{path}", path)


def with_site_links(text: str, source: str, page: str) -> str:
    """Return Markdown whose links are relative to ``page`` in the site instead of ``source`` in the repository."""

    def moved(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match["target"]))
        in_site = PAGES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(in_site, posixpath.dirname(page) or ".")

    return IMAGE.sub(moved, LINK.sub(moved, text))
