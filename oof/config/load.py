"""Configuration loader: a YAML file, overrides on top of it, validation against the schema.

``load("configs/demo.yaml", ["stack.trials=5"])`` returns one immutable :class:`Config`. Frozen dataclasses
(:mod:`oof.config.schema`) hold the defaults, so YAML holds only what differs. An unknown key is refused, with the
nearest known one; a value is checked against the range or the choices that its field declares.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from oof.common.errors import UserError
from oof.config.schema import Config, Distill, Member
from oof.config.setting import named_sections, sections, settings
from oof.config.shipped_recipes import resolve_checkpoints
from oof.config.user_values import ALIASES, fitted, join_words, nearest_setting, one_line, plain_value, short

# Both build plain values alone; the one in C, which PyYAML has where libyaml is, takes a fraction of the time.
SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_CONFIG_BYTES = 1_000_000
MAX_DEPTH = 32  # levels; the deepest setting is at the fourth
OPENING = (
    yaml.FlowSequenceStartToken, yaml.FlowMappingStartToken, yaml.BlockSequenceStartToken, yaml.BlockMappingStartToken,
)  # fmt: skip
CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)
OVERRIDE = re.compile(r"[A-Za-z_][\w.-]*=")  # key.sub=value
OVERRIDES = "overrides"  # where these come from, in messages
MAKE_VARIABLES = {
    "RUN": "run=", "DATA": "data.train=", "TEST": "data.test=", "LOGITS": "stack.logits=", "REDO": "--redo",
    "TEST_LOGITS": "stack.test_logits=", "CONFIG": "the path alone, before the settings",
}  # fmt: skip
MEMBER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # also a folder's name in the run

Setting = tuple[tuple[str, ...], dataclasses.Field[Any], object]  # path, field and value


def load(path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Return the configuration of a YAML file (None = the defaults); ``key.sub=value`` overrides replace its values.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, a value has the wrong type or range.
    """
    changes = parse_overrides(overrides)
    if path is None:
        return resolve({OVERRIDES: changes}, run=str(Path("runs") / OVERRIDES))
    path = Path(path)
    tree = read_yaml(path)
    resolve_checkpoints(tree, path.parent)
    return resolve({str(path): tree, OVERRIDES: changes}, run=str(Path("runs") / path.stem))


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Return ``key.sub=value`` words as nested plain values; the later one counts where two set the same.

    Raises:
        UserError: a word is not of this form, or its value is not YAML.
    """
    changes: Any = OmegaConf.create()
    for override in join_words(list(overrides)):
        if not re.match(r"[A-Za-z_][\w.-]*=(?!=)", override):
            raise UserError(f"override {one_line(override)!r}: expected key.sub=value, for example stack.trials=5")
        name, text = override.split("=", 1)
        if name in MAKE_VARIABLES:
            meant = MAKE_VARIABLES[name] + (text if MAKE_VARIABLES[name].endswith("=") else "")
            raise UserError(f"override {short(override)}: {name} is a variable of make; here it is {short(meant)}")
        value = plain_value(name, text, Config)
        try:
            if value is None:
                changes = OmegaConf.merge(changes, OmegaConf.from_dotlist([override]))
            else:
                OmegaConf.update(changes, name, value)
        except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"override {short(override)}: its value is not valid YAML; quote texts with '") from error
    tree: Any = OmegaConf.to_container(changes)
    return {str(key): value for key, value in tree.items()}


def resolve(layers: Mapping[str, dict[str, Any]], run: str) -> Config:
    """Return the configuration of several layers of plain values; later ones replace values of earlier ones.

    Args:
        layers: where the values come from, for messages -> nested plain values.
        run: the run folder where no layer names one.

    Raises:
        UserError: a key is unknown, a value has the wrong type or range.
    """
    for origin, values in layers.items():
        _fit(origin, values, Config)
    try:
        merged = OmegaConf.merge(_schema(), *layers.values())
        assert isinstance(merged, DictConfig)
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{next(iter(layers))}: {_first_line(error)}") from error
    assert isinstance(config, Config)
    for path, field, value in _values(config):
        _check_value(f"{_origin(layers, path)}: {'.'.join(path)}", field, value)
    if "\0" in config.run:
        raise UserError(f"{_origin(layers, ('run',))}: run={config.run!r}: a folder name cannot hold a NUL character")
    return config if config.run else dataclasses.replace(config, run=run)


@functools.cache  # it takes as long as the rest of a load, and a merge copies it
def _schema() -> DictConfig:
    schema = OmegaConf.structured(Config)
    OmegaConf.set_readonly(schema, None)  # a frozen dataclass becomes a read-only node, which refuses a merge
    assert isinstance(schema, DictConfig)
    return schema


def to_dict(config: Config | Member | Distill) -> dict[str, Any]:
    """Return a resolved configuration, or a part of it, as plain JSON values."""
    return dataclasses.asdict(config)


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the content of a YAML file; an empty file has no values.

    Raises:
        UserError: it cannot be read, is not YAML, or holds no 'key: value' lines.
    """
    try:
        if path.is_dir():
            raise UserError(
                f"{path}: a folder, not a configuration; to go on with a run, name it run={path} (RUN={path})"
            )
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(f"{path}: larger than {MAX_CONFIG_BYTES:,} bytes; this is not a configuration")
        text = path.read_text(encoding="utf-8")
        _refuse_aliases_and_depth(path, text)
        tree = yaml.load(text, Loader=SAFE_LOADER)  # noqa: S506 - safe, see there
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
    """Refuse YAML that takes far longer to parse than its size suggests.

    PyYAML's time grows with the square of the nesting, and aliases multiply a document's size.
    """
    depth = 0
    for token in yaml.scan(text, Loader=SAFE_LOADER):
        if isinstance(token, yaml.AliasToken):
            raise UserError(f"{path}: YAML aliases (*name) are not supported; write the value out")
        depth += isinstance(token, OPENING) - isinstance(token, CLOSING)
        if depth > MAX_DEPTH:
            raise UserError(f"{path}: nested more than {MAX_DEPTH} levels deep; this is not a configuration")


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n\n")[0].split())[:300] or type(error).__name__


def _fit(origin: str, tree: object, schema: type, prefix: str = "") -> None:
    """Change the values of ``tree`` in place so that they fit the dataclass ``schema``; refuse keys that it lacks.

    The keys of free-form mappings (``data.columns``) may be any.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{origin}: {prefix[:-1]}: expected settings below it ('key: value'), not {tree!r:.60}")
    nested, named, hints = sections(schema), named_sections(schema), get_type_hints(schema)
    known = [field.name for field in dataclasses.fields(schema)]
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if key not in known:
            alias = ALIASES.get(str(key))
            near = [alias] if alias else difflib.get_close_matches(str(key), known, n=1)
            meant = f"{prefix}{near[0]}" if near and near[0] in known else nearest_setting(str(key), Config)
            hint = f"did you mean {meant}?" if meant else f"known keys: {', '.join(known)}"
            raise UserError(f"{origin}: unknown key {one_line(name)!r}; {hint}")
        if isinstance(value, int) and abs(value) > sys.float_info.max:  # OmegaConf fails to convert it to a float
            raise UserError(f"{origin}: {name}: a number of more than 308 digits; no setting takes one")
        if key in nested:
            _fit(origin, value, nested[key], f"{name}.")
        elif key in named:
            _fit_members(origin, value, named[key])
        else:
            choices = settings(schema)[key].metadata["choices"] or ()
            tree[key] = fitted(f"{origin}: {name}", value, hints[key], choices)


def _fit_members(origin: str, members: object, schema: type) -> None:
    if not isinstance(members, dict):
        raise UserError(f"{origin}: members: expected settings under each member's name, not {members!r:.60}")
    for name, member in members.items():
        if not MEMBER_NAME.fullmatch(str(name)):
            raise UserError(f"{origin}: member name {str(name)!r}: use letters, digits, '_', '-' and '.'")
        _fit(origin, member, schema, f"members.{name}.")


def _origin(layers: Mapping[str, dict[str, Any]], path: tuple[str, ...]) -> str:
    """Return the last layer that sets a setting: its value is the one that counts."""

    def sets(values: Any) -> bool:
        for key in path:
            if not isinstance(values, dict) or key not in values:
                return False
            values = values[key]
        return True

    return next((origin for origin in reversed(list(layers)) if sets(layers[origin])), next(iter(layers)))


def _values(section: Any, path: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yield path, field and value of every setting of a section."""
    schema: Any = type(section)
    nested, named, fields = sections(schema), named_sections(schema), settings(schema)
    for field in dataclasses.fields(schema):
        name, value = field.name, getattr(section, field.name)
        if name in nested:
            yield from _values(value, (*path, name))
        elif name in named:
            for key, inner in value.items():
                yield from _values(inner, (*path, name, str(key)))
        else:
            yield (*path, name), fields[name], value


def _check_value(place: str, field: dataclasses.Field[Any], value: object) -> None:
    choices, bounds = field.metadata["choices"], field.metadata["range"]
    if choices and value is not None and value not in choices:  # null where the type allows it
        raise UserError(f"{place}={value!r}; choose one of {', '.join(choices)}")
    if bounds and isinstance(value, int | float):
        low, high = bounds
        if not low <= value <= high:  # also refuses NaN
            raise UserError(f"{place}={value}; it must lie between {low:g} and {high:g}")
