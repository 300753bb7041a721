"""Settings that a run remembers: ``RUN/config.yaml``, read by every later command of the run.

The first command that writes into a run folder stores its resolved configuration there. A later command without a
configuration file starts from it: settings of its command line are laid on top, and are stored in turn for the stages
that they concern. Relative paths start at the working folder of the first command, which ``RUN/files.json`` names.
Runs of older versions have no such file: their settings are read from ``run.json``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from oof.common.atomic_files import parse_json, replacing
from oof.common.errors import UserError
from oof.config.load import OVERRIDES, load, parse_overrides, read_yaml, resolve, to_dict
from oof.config.schema import Config
from oof.config.setting import default_of, named_sections, sections, settings
from oof.config.shipped_recipes import model_sections
from oof.config.speed_only import without_speed_settings
from oof.config.user_values import join_words

logger = logging.getLogger(__name__)

STORED = "config.yaml"
FILES = "files.json"  # working folder and data files of the run, see oof.jobs.source_files
HEADER = """\
# Settings of this run, written by its commands. Later commands start from them: make stack RUN=…
# What a command line sets is laid on top and stored here, too. CONFIG=FILE replaces all of them.
"""
PATHS = (  # settings that name files; their relative paths start at the working folder
    "data.train", "data.extra", "data.unlabelled", "data.votes", "data.test", "data.truth", "pretrain.data",
    "stack.logits", "stack.test_logits",
)  # fmt: skip
EXAMPLE = "configs/demo.yaml"


def load_for_run(path: str | None, overrides: Sequence[str], default: str | None = None) -> Config:
    """Return the configuration of a command: that of a file, or else the one that the run remembers.

    The working folder becomes that of the run's first command, if it still exists: there the remembered paths start.

    Args:
        path: YAML file; None = the settings of the run that ``run=…`` names.
        overrides: ``key.sub=value`` words, laid on top.
        default: YAML file for a run that remembers nothing.

    Raises:
        UserError: there is neither a file nor a run that remembers its settings, or a setting is wrong.
    """
    if path is not None:
        return load(path, overrides)
    overrides = join_words(list(overrides))
    changes = parse_overrides(overrides)
    name = str(changes.get("run") or "")
    stored = stored_settings(Path(name)) if name else None
    if stored is None:
        if default is not None:
            return load(default, overrides)
        raise UserError(_nothing_remembered(name))
    run, folder = Path(os.path.abspath(name)), working_folder(Path(name))
    if folder != Path.cwd() and folder.is_dir():
        make_absolute(changes)
        name = str(run)
        os.chdir(folder)
        logger.info("relative paths start at %s, where this run was made", folder)
    written = str(stored.get("run") or "")  # content keys hold the run's path as it was first written
    changes["run"] = written if written and os.path.abspath(written) == str(run) else name
    _drop_replaced(stored, overrides)
    return resolve({str(run / STORED): stored, OVERRIDES: changes}, run=name)


def _nothing_remembered(run: str) -> str:
    if not run:
        return f"name a configuration (CONFIG={EXAMPLE}), or a run that remembers its own (RUN=runs/demo)"
    folder = Path(run).absolute().parent
    others = [path.parent for name in (STORED, "run.json") for path in sorted(folder.glob(f"*/{name}"))]
    near = ", ".join(dict.fromkeys(str(Path(run).parent / path.name) for path in others[:5]))
    there = f"runs here: {near}" if near else "no run here does"
    return f"{run}: no settings are remembered here ({there}); name such a run, or a configuration: CONFIG={EXAMPLE}"


def stored_settings(run: Path) -> dict[str, Any] | None:
    """Return the settings that a run remembers as plain values; None if it remembers nothing.

    Raises:
        UserError: their file cannot be read.
    """
    path = run / STORED
    try:
        if path.is_file():
            return with_older_values(read_yaml(path), place=f"{path}: ")
        path = run / "run.json"
        if not path.is_file():
            return None
        return with_older_values(parse_json(path)["config"], place=f"{path}: ")
    except (UserError, OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: damaged, the run's settings cannot be read ({error}); name them: CONFIG=FILE"
        ) from error


def with_older_values(tree: dict[str, Any], schema: Any = Config, place: str = "") -> dict[str, Any]:
    """Return a run's remembered values as this version reads them.

    Settings that the run's version lacked have the value under which it was made, where their default is new. Settings
    that this version lacks are left out, and named in the log after ``place``.
    """
    nested, named, fields = sections(schema), named_sections(schema), settings(schema)
    older = {name: field.metadata["older"] for name, field in fields.items()}
    full = {name: value for name, value in older.items() if value != default_of(fields[name])}
    full |= {name: value for name, value in tree.items() if name in fields}
    for name in tree:
        if name not in {*nested, *named, *fields}:
            logger.warning("%s%s: this version has no such setting; it is left out", place, name)
    for name, inner in nested.items():
        full[name] = with_older_values(tree.get(name) or {}, inner, f"{place}{name}.")
    for name, inner in named.items():
        models = (tree.get(name) or {}).items()
        full[name] = {key: with_older_values(model or {}, inner, f"{place}{name}.{key}.") for key, model in models}
    return full


def working_folder(run: Path) -> Path:
    """Return the working folder of the run's first command; the current one if the run does not say."""
    try:
        return Path(parse_json(run / FILES)["folder"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return Path.cwd()


def make_absolute(tree: dict[str, Any]) -> None:
    """Make the relative paths among settings absolute; a checkpoint is a path if such a folder exists."""
    for name in PATHS:
        section, key = name.split(".")
        values = tree.get(section)
        if isinstance(values, dict) and values.get(key):
            values[key] = _absolute(values[key])
    for model in model_sections(tree):
        if model.get("checkpoint") and Path(str(model["checkpoint"])).is_dir():
            model["checkpoint"] = _absolute(model["checkpoint"])


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    if isinstance(value, dict):
        return {key: _absolute(item) for key, item in value.items()}
    is_path = isinstance(value, str) and not value.startswith("hf:")  # a dataset of the hub has no folder
    return str(Path(value).absolute()) if is_path else value


def _drop_replaced(stored: dict[str, Any], overrides: Sequence[str]) -> None:
    """Drop each remembered mapping that an override sets as a whole: ``LOGITS=…`` names all files of logits."""
    for override in overrides:
        *parents, key = override.split("=", 1)[0].split(".")
        schema: Any = Config
        values: Any = stored
        for parent in parents:
            schema = sections(schema).get(parent) if schema is not None else None
            values = values.get(parent) if isinstance(values, dict) else None
        field = settings(schema).get(key) if schema is not None else None
        if field is not None and isinstance(values, dict) and isinstance(default_of(field), dict):
            values.pop(key, None)


def store_settings(config: Config, names: Sequence[str] = ()) -> None:
    """Store the settings of a run; of a run that has some, only those of the stages that a command concerns.

    Args:
        config: of the command.
        names: sections, or settings as ``data.test``, that the command's stage reads first; () = all settings.
    """
    run, now = Path(config.run), to_dict(config)
    try:
        before = stored_settings(run)
    except UserError as error:  # the command has a configuration of its own
        logger.warning("%s; written again", error)
        before = None
    tree = now
    if names and before is not None:
        tree = to_dict(resolve({str(run / STORED): before}, run=config.run))
        elsewhere = working_folder(run) != Path.cwd()
        for name in names:
            *parents, key = name.split(".")
            into, source = tree, now
            for parent in parents:
                into, source = into[parent], source[parent]
            into[key] = source[key]
        if elsewhere:
            changed = {parent: tree[parent] for parent in {name.split(".")[0] for name in names}}
            make_absolute(changed)
    if (run / STORED).is_file() and before == tree:
        return
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120)
    with replacing(run / STORED) as temporary:
        temporary.write_text(HEADER + text, encoding="utf-8")


def changes_since_stored(config: Config) -> list[tuple[str, Any, Any]]:
    """Return path, remembered and present value of each setting that differs from the run's, but for speed.

    Without settings of the run, or with damaged ones, nothing counts as changed.
    """
    try:
        stored = stored_settings(Path(config.run))
    except UserError:  # damaged; the command has a configuration of its own
        stored = None
    if stored is None:
        return []
    trees = to_dict(resolve({config.run: stored}, run=config.run)), to_dict(config)
    for tree in trees:
        make_absolute(tree)
    before, now = (without_speed_settings(tree, Config) for tree in trees)
    return list(setting_differences(before, now))


def setting_differences(
    before: dict[str, Any], after: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Yield path, old and new value of every setting that differs between two trees of plain values."""
    for name in dict.fromkeys((*before, *after)):
        old, new = before.get(name), after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from setting_differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}", old, new
