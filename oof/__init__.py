"""Stage one: preference data to out-of-fold logits. Knows nothing of :mod:`ensemble`.

``from oof import read_battles, group_folds`` reads and folds battles in a Python shell; ``import oof`` alone imports
nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oof.common.errors import UserError
    from oof.python_api import Reading, group_folds, read_battles

__all__ = ["Reading", "UserError", "group_folds", "read_battles"]

if not TYPE_CHECKING:  # a type checker would take any name for one of this package

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("oof.common.errors" if name == "UserError" else "oof.python_api"), name)

    def __dir__() -> list[str]:
        return sorted([*globals(), *__all__])
