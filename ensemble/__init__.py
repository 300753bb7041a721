"""Stages two and three. ``from ensemble import Judge, Stack, Temperature``; ``import ensemble`` alone imports nothing.

``Judge`` opens an exported student and needs torch; ``Stack`` and ``Temperature`` work on arrays without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ensemble.serving.judge import Judge, Verdict
    from ensemble.stacking.estimator import Stack
    from ensemble.stacking.temperature import Temperature

__all__ = ["Judge", "Stack", "Temperature", "Verdict"]

if not TYPE_CHECKING:  # a type checker would take any name for one of this package
    _MODULES = {
        "Judge": "ensemble.serving.judge",
        "Stack": "ensemble.stacking.estimator",
        "Temperature": "ensemble.stacking.temperature",
        "Verdict": "ensemble.serving.judge",
    }

    def __getattr__(name: str) -> object:
        # Torch takes seconds to import, and most of this package never needs it.
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
