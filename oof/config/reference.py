"""Reference of all settings as Markdown tables, generated from the schema's metadata.

``arena-distill settings`` prints it.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator
from typing import Any

from oof.config.schema import Config
from oof.config.setting import default_of, named_sections, sections, settings

SPEED_ONLY = "*Speed only.*"
INTRODUCTION = f"""# Settings

A setting stands in the YAML file or on the command line (`stack.trials=5`). A default of `null` is explained in the
setting's meaning. {SPEED_ONLY} marks settings that change run time, memory or disk alone: results agree up to
floating-point rounding, and finished work stays valid after a change. After a change of any other setting, the steps
that depend on it run again."""
HEADER = "| setting | default | unit | values | meaning |\n|---|---|---|---|---|"


def settings_reference() -> str:
    """Return one Markdown table per section: path, default, unit, allowed values and meaning of each setting.

    A section that occurs twice (the student's settings are a member's) is listed once, where it occurs first.
    """
    return "\n\n".join([INTRODUCTION, *_blocks(Config, "", {})]) + "\n"


def _blocks(schema: type, path: str, listed: dict[type, str]) -> Iterator[str]:
    """Yield the Markdown of a section and of its nested sections; ``listed`` holds the sections so far."""
    title = f"## `{path}`" if path else "## Top level"
    if schema in listed:
        yield f"{title}\n\nThe same settings as `{listed[schema]}`."
        return
    listed[schema] = path
    prefix = f"{path}." if path else ""
    rows = [_row(f"{prefix}{name}", field) for name, field in settings(schema).items()]
    yield "\n\n".join([title, inspect.cleandoc(schema.__doc__ or "").replace("``", "`"), "\n".join([HEADER, *rows])])
    nested, named = sections(schema), named_sections(schema)
    for field in dataclasses.fields(schema):
        if field.name in nested:
            yield from _blocks(nested[field.name], f"{prefix}{field.name}", listed)
        elif field.name in named:
            yield from _blocks(named[field.name], f"{prefix}{field.name}.NAME", listed)


def _row(path: str, field: dataclasses.Field[Any]) -> str:
    metadata, default = field.metadata, default_of(field)
    meaning = metadata["doc"] + (f". {SPEED_ONLY}" if metadata["speed_only"] else "")
    shown = default if isinstance(default, str) and default else json.dumps(default)
    cells = [f"`{path}`", f"`{shown}`", metadata["unit"], _values(metadata), meaning]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _values(metadata: Any) -> str:
    if metadata["choices"]:
        return ", ".join(f"`{choice}`" for choice in metadata["choices"])
    if metadata["range"]:
        return " to ".join(_number(bound) for bound in metadata["range"])
    return ""


def _number(value: float) -> str:
    """Return a bound as people write it: 1,000,000 instead of 1e+06."""
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"
