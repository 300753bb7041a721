"""Page of the service: one HTML file with its style and script, which asks nobody but the service."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from oof.common.digests import content_hash


@cache
def page() -> str:
    """Return the page."""
    return Path(__file__).with_name("page.html").read_text(encoding="utf-8")


@cache
def page_headers() -> dict[str, str]:
    """Return the page's headers: a policy that lets nothing run or load but its own script and style."""
    script, style = (_hash_of(tag) for tag in ("script", "style"))
    policy = (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hash_of(tag: str) -> str:
    return content_hash(re.findall(rf"<{tag}>(.*?)</{tag}>", page(), re.S)[0])
