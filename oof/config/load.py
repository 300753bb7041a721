"""Configuration: frozen dataclasses are the schema and the defaults; YAML holds what differs.

``load("configs/demo.yaml", ["stack.trials=5"])`` gives one immutable :class:`Config`. Nothing in a
configuration names a class or a function to call. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from oof.common.errors import UserError
from oof.config import schema as declared
from oof.config.schema import CHOICES, RANGES, Config, Distill, Member

MAX_CONFIG_BYTES = 1_000_000
MAX_DEPTH = 32  # levels; the deepest setting is at the fourth
OPENING = (
    yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken,
)  # fmt: skip
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file with ``key.sub=value`` overrides laid over it.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, a value has the wrong type or range.
    """
    path = Path(path)
    tree = _read_yaml(path)
    for override in overrides:
        if not re.match(r"[A-Za-z_][\w.-]*=", override):
            raise UserError(f"override {override!r}: expected key.sub=value, for example stack.trials=5")
    try:
        changes = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"overrides {' '.join(overrides)}: {_first_line(error)}") from error
    for origin, part in ((str(path), tree), ("overrides", changes)):
        _refuse_unknown(origin, part, Config)
        _spell_switches(part)
    try:
        schema = OmegaConf.structured(Config)
        OmegaConf.set_readonly(schema, None)  # a frozen dataclass makes a read-only node that nothing can be laid over
        merged = OmegaConf.merge(schema, tree, changes)
        assert isinstance(merged, DictConfig)
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    assert isinstance(config, Config)
    _check_values(str(path), config)
    return config if config.run else dataclasses.replace(config, run=str(Path("runs") / path.stem))


def to_dict(config: Config | Member | Distill) -> dict[str, Any]:
    """Return a resolved configuration, or a part of it, as plain JSON values."""
    return dataclasses.asdict(config)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(f"{path}: larger than {MAX_CONFIG_BYTES:,} bytes; this is not a configuration")
        text = path.read_text(encoding="utf-8")
        _refuse_aliases_and_depth(path, text)
        tree = yaml.safe_load(text)
    except OSError as error:
        raise UserError(
            f"{path}: cannot read the configuration ({error.strerror}); see configs/ for examples"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid YAML: {_first_line(error)}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{path}: expected 'key: value' lines at the top level")
    return tree


def _refuse_aliases_and_depth(path: Path, text: str) -> None:
    """Refuse what takes a parser more time than its size: PyYAML's grows with the square of the nesting."""
    depth = 0
    for token in yaml.scan(text, Loader=yaml.SafeLoader):
        if isinstance(token, yaml.AliasToken):
            raise UserError(f"{path}: YAML aliases (*name) are not supported; write the value out")
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > MAX_DEPTH:
            raise UserError(f"{path}: nested more than {MAX_DEPTH} levels deep; this is not a configuration")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__


def _refuse_unknown(origin: str, tree: object, schema: Any, prefix: str = "") -> None:
    """Walk ``tree`` beside the dataclass ``schema``; free-form mappings (members, columns) keep their own names."""
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: {prefix[:-1]}: expected settings below it ('key: value'), not {tree!r:.60}")
    fields = {f.name: f.type for f in dataclasses.fields(schema)}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in fields:
            near = difflib.get_close_matches(str(key), list(fields), n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(fields)}"
            raise UserError(f"{origin}: unknown key {name!r}; {hint}")
        if isinstance(value, int) and abs(value) > sys.float_info.max:  # omegaconf fails to make a float of it
            raise UserError(f"{origin}: {name}: a number of more than 308 digits; no setting takes one")
        inner = vars(declared).get(str(fields[key]))
        if dataclasses.is_dataclass(inner):
            _refuse_unknown(origin, value, inner, f"{name}.")
        elif name == "members":
            if not isinstance(value, dict):
                raise UserError(f"{origin}: members: expected a recipe under each member's name, not {value!r:.60}")
            for member, recipe in value.items():
                if not NAME.fullmatch(str(member)):
                    raise UserError(f"{origin}: member name {str(member)!r}: use letters, digits, '_', '-' and '.'")
                _refuse_unknown(origin, recipe, Member, f"members.{member}.")


def _spell_switches(tree: Any) -> None:
    """YAML reads ``on`` and ``off`` as true and false: give our choices their names back."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, bool) and "off" in CHOICES.get(str(key), ()):
            tree[key] = "on" if value else "off"
        _spell_switches(value)


def _leaves(value: object, prefix: str = "") -> Iterator[tuple[str, str, object]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for item in dataclasses.fields(value):
            inner = getattr(value, item.name)
            yield from _leaves(inner, f"{prefix}{item.name}.")
            yield f"{prefix}{item.name}", item.name, inner
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}{key}.")


def _check_values(origin: str, config: Config) -> None:
    for path, name, value in _leaves(config):
        choices = CHOICES.get(path, CHOICES.get(name, ()))
        if choices and value not in choices:
            raise UserError(f"{origin}: {path}={value!r}; choose one of {', '.join(choices)}")
        if name in RANGES and isinstance(value, int | float):
            low, high = RANGES.get(path, RANGES[name])
            if not low <= value <= high:  # also refuses NaN
                raise UserError(f"{origin}: {path}={value}; it must lie between {low:g} and {high:g}")
    if "\0" in config.run:
        raise UserError(f"{origin}: run={config.run!r}: a folder name cannot hold a NUL character")
