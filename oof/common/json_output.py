"""JSON on standard output, for scripts: one document, whose numbers are finite or null."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` to a subcommand."""
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of text, for scripts")


def plain(value: Any) -> Any:
    """Return a tree of JSON values: numpy numbers become Python numbers, NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_json(document: dict[str, Any]) -> None:
    """Print one document, in ASCII: any terminal and any text of a file can take it."""
    print(json.dumps(plain(document), indent=2, allow_nan=False))
