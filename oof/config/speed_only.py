"""Removal of speed-only settings: the part of a configuration that results depend on.

Every content key and every comparison of two configurations reads settings through
:func:`without_speed_settings`, so that changing such a setting never makes finished work count as out of date.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from oof.config.setting import default_of, named_sections, sections, settings

# Content keys hold a fixed value in place of a speed-only setting: its default, except where the keys of the first
# runs held another value. A change here changes the content key of every existing run. Settings that were added
# later are left out (``added``).
FIXED_VALUES = {"score_tokens_per_batch": 0}
# Settings that are gone, by their section: content keys keep the value that left them out.
GONE = {"Losses": {"consistency": 0.0}}


def without_speed_settings(section: Any, schema: type | None = None) -> dict[str, Any]:
    """Return a section's plain values with a fixed value for every setting that changes speed only.

    Args:
        section: an instance, for example a ``Member``; or plain values, as ``run.json`` holds them. Entries that the
            schema does not know (of another version) are kept as they are.
        schema: dataclass of plain values.
    """
    if schema is None:
        return without_speed_settings(dataclasses.asdict(section), type(section))
    fields, nested, named = settings(schema), sections(schema), named_sections(schema)
    speed_only = {name: field for name, field in fields.items() if field.metadata["speed_only"]}
    kept: dict[str, Any] = dict(GONE.get(schema.__name__, {}))
    for name, value in section.items():
        if name in nested:
            inner = without_speed_settings(value, nested[name])
            kept |= {name: inner} if inner else {}  # a section of added settings: older runs lack it
        elif name in named:
            kept[name] = {key: without_speed_settings(inner, named[name]) for key, inner in value.items()}
        elif name not in speed_only and not _as_before(fields.get(name), value):
            kept[name] = value
    return kept | {
        name: FIXED_VALUES.get(name, default_of(field))
        for name, field in speed_only.items()
        if not field.metadata["added"]
    }


def _as_before(field: dataclasses.Field[Any] | None, value: object) -> bool:
    """Return whether a setting that older runs lack has the value under which those runs were made."""
    return field is not None and bool(field.metadata["added"]) and bool(value == field.metadata["older"])
