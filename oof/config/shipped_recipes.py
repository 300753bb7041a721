"""Shipped recipes: the YAML files of ``configs/`` and the demo's base checkpoints, in a checkout and in a wheel.

The wheel holds them as ``oof/recipes``; in a checkout, and in an editable installation, they are ``configs/``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from oof.common.errors import UserError

PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = "configs"  # in a checkout, and where ``arena-distill init`` writes them


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes."""
    packaged = PACKAGE / "recipes"
    return packaged if packaged.is_dir() else PACKAGE.parent / FOLDER


def shipped_recipe(name: str) -> str | None:
    """Return the path of the shipped recipe of a name such as ``lmsys`` or ``lmsys.yaml``; None if there is none."""
    path = recipes_folder() / f"{name.removesuffix('.yaml')}.yaml"
    return path_from_here(path) if path.is_file() else None


def path_from_here(path: Path) -> str:
    """Return a path relative to the working folder if it is below it, so that both can be moved; else absolute."""
    here = os.path.relpath(path)
    return str(path.absolute()) if here.split(os.sep)[0] == os.pardir else here


def resolve_checkpoints(tree: dict[str, Any], folder: Path) -> None:
    """Replace every relative checkpoint that is a folder beside the configuration by its path from here, in place.

    Args:
        tree: content of a YAML file, not yet validated.
        folder: of that file.
    """
    for recipe in model_sections(tree):
        checkpoint = recipe.get("checkpoint")
        if not isinstance(checkpoint, str) or not checkpoint or os.path.isabs(checkpoint):
            continue
        if os.path.isdir(folder / checkpoint):
            recipe["checkpoint"] = path_from_here(folder / checkpoint)


def model_sections(tree: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the mappings under ``members`` and ``distill.student`` of settings that are not yet validated."""
    members, distill = tree.get("members"), tree.get("distill")
    found = list(members.values()) if isinstance(members, dict) else []
    found += [distill.get("student")] if isinstance(distill, dict) else []
    return [section for section in found if isinstance(section, dict)]


def find_recipe(name: str) -> str:
    """Return the path of a configuration: the user's file, or else the shipped recipe of that name.

    Raises:
        UserError: the file is missing here while a shipped recipe has its name.
    """
    path = Path(name)
    shipped = None if path.is_file() else shipped_recipe(path.name)
    if shipped is not None and path.parent != Path():
        stem = Path(shipped).stem
        raise UserError(
            f"{name}: no such file; 'arena-distill init' writes {FOLDER}/{stem}.yaml, or name the shipped recipe: "
            f"CONFIG={stem}"
        )
    return shipped or name
