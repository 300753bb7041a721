"""Stages two and three. ``from ensemble import Judge, Stack, Temperature, open_run``.

``import ensemble`` alone imports nothing else, and only ``Judge``, which opens an exported student, needs torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ensemble.evaluation.open_run import Run, open_run
    from ensemble.serving.judge import Judge
    from ensemble.serving.verdicts import Answers, Verdict
    from ensemble.stacking.estimator import Stack
    from ensemble.stacking.temperature import Temperature

__all__ = ["Answers", "Judge", "Run", "Stack", "Temperature", "Verdict", "open_run"]

if not TYPE_CHECKING:  # a type checker would take any name for one of this package
    _MODULES = {
        "Answers": "ensemble.serving.verdicts",
        "Judge": "ensemble.serving.judge",
        "Run": "ensemble.evaluation.open_run",
        "Stack": "ensemble.stacking.estimator",
        "Temperature": "ensemble.stacking.temperature",
        "Verdict": "ensemble.serving.verdicts",
        "open_run": "ensemble.evaluation.open_run",
    }

    def __getattr__(name: str) -> object:
        # Torch takes seconds to import, and most of this package never needs it.
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(_MODULES[name]), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
