"""Declaration of one setting: default, documentation, unit, allowed values and "changes speed only".

A section of the configuration is a frozen dataclass. Each of its fields is a setting, declared with :func:`setting`,
or a section of its own. Validation (:mod:`oof.config.load`), the reference page (:mod:`oof.config.reference`) and the
content keys (:mod:`oof.config.speed_only`) read the field's metadata, so each fact is written once.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


def setting(
    default: T,
    doc: str,
    *,
    unit: str = "",
    range: tuple[float, float] | None = None,
    choices: tuple[str, ...] | None = None,
    speed_only: bool = False,
    added: bool = False,
    older: T | None = None,
) -> T:
    """Declare a field of a section.

    Args:
        default: a list or dictionary is copied for each instance.
        doc: meaning, special values and reason.
        unit: of a number; "" for names, switches and ratios without one.
        range: smallest and largest value, both allowed.
        choices: all allowed values.
        speed_only: changes run time, memory or disk alone (results agree up to floating-point rounding), so finished
            work stays valid; see :mod:`oof.config.speed_only`.
        added: there were runs before this setting. Content keys leave it out while it has their value, so that those
            runs stay valid.
        older: the value of those runs; None = the default.
    """
    metadata = {
        "doc": doc, "unit": unit, "range": range, "choices": choices, "speed_only": speed_only, "added": added,
        "older": default if older is None else older,
    }  # fmt: skip
    if isinstance(default, list | dict):
        field: Any = dataclasses.field(default_factory=default.copy, metadata=metadata)
    else:
        field = dataclasses.field(default=default, metadata=metadata)
    return field  # type: ignore[no-any-return]  # a type checker should see the default, as with dataclasses.field


@cache
def sections(schema: Any) -> dict[str, Any]:
    """Return the nested sections of a section: field name -> dataclass."""
    return {name: hint for name, hint in get_type_hints(schema).items() if dataclasses.is_dataclass(hint)}


@cache
def named_sections(schema: Any) -> dict[str, Any]:
    """Return the fields that map a user's own names to sections (``members``): field name -> dataclass."""
    values = {n: get_args(hint)[1] for n, hint in get_type_hints(schema).items() if get_origin(hint) is dict}
    return {name: value for name, value in values.items() if dataclasses.is_dataclass(value)}


@cache
def settings(schema: Any) -> dict[str, dataclasses.Field[Any]]:
    """Return the settings of a section itself, without those of its nested sections: name -> field."""
    nested = sections(schema) | named_sections(schema)
    return {field.name: field for field in dataclasses.fields(schema) if field.name not in nested}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a setting."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
