"""Stages two and three. ``from ensemble import Judge`` opens an exported student; nothing else is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ensemble.serving.judge import Judge, Verdict

__all__ = ["Judge", "Verdict"]


def __getattr__(name: str) -> object:
    # Torch takes seconds to import, and most of this package never needs it.
    if name in __all__:
        from ensemble.serving import judge

        return getattr(judge, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
