"""Values as users write them, made fit for the schema, and messages about them in the users' own words.

One path is accepted for a list of paths, ``{1: a}`` for a mapping of texts, and ``on`` for a switch's name. What does
not fit a setting's type is refused here, before OmegaConf sees it.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from os.path import exists
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from oof.common.errors import UserError
from oof.config.setting import named_sections, sections

# Names that other tools use -> ours.
ALIASES = {
    "learning_rate": "lr", "batch_size": "batch_battles", "per_device_train_batch_size": "batch_battles",
    "num_train_epochs": "epochs", "max_length": "max_tokens", "max_seq_length": "max_tokens", "n_folds": "k",
    "num_folds": "k", "n_splits": "k", "lora_r": "rank", "r": "rank", "lora_alpha": "alpha", "n_trials": "trials",
    "model_name_or_path": "checkpoint", "attn_implementation": "attn",
}  # fmt: skip
EXAMPLES = {  # of mappings
    "stack.logits": "{gemma: gemma.csv}", "stack.test_logits": "{gemma: test.csv}",
    "data.verdicts": "{1: a, 2: b, 0: tie}",
}  # fmt: skip
PAIR = re.compile(r"(?:^|(?<=\s))([A-Za-z0-9][\w.-]*)=(.*?)(?=\s+[A-Za-z0-9][\w.-]*=|\s*$)")  # of name=value words
KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def split_paths(text: str) -> list[str]:
    """Return the paths in a text: the whole of it where it is a file, else its words; quotes keep spaces.

    Words are joined again where only together they name a file, so that ``my data.csv more.csv`` is two paths.
    """
    if not text.strip():
        return []
    if exists(text):
        return [text]
    try:
        words = shlex.split(text)
    except ValueError:  # a quotation mark alone
        words = text.split()
    paths: list[str] = []
    while words:
        ends = [n for n in range(len(words), 1, -1) if exists(" ".join(words[:n]))]
        n = ends[0] if ends and not exists(words[0]) else 1
        paths.append(" ".join(words[:n]))
        words = words[n:]
    return paths


def join_words(words: list[str]) -> list[str]:
    """Return overrides whole again that a shell has split at the spaces within ``{…}`` or ``[…]``."""
    joined: list[str] = []
    for word in words:
        previous = joined[-1] if joined else ""
        if previous.count("{") > previous.count("}") or previous.count("[") > previous.count("]"):
            joined[-1] = f"{previous} {word}"
        else:
            joined.append(word)
    return joined


def plain_value(name: str, text: str, schema: Any) -> object | None:
    """Return the value of an override that is no YAML; None if it is.

    It is the path or paths of a setting that takes a list of texts, or the pairs ``name=file other=file`` of a mapping.
    """
    parts = name.split(".")
    while parts and parts[0] in sections(schema) | named_sections(schema):
        first, *parts = parts
        if first in named_sections(schema):
            schema, parts = named_sections(schema)[first], parts[1:]  # without the user's own name
        else:
            schema = sections(schema)[first]
    hint = get_type_hints(schema).get(parts[0]) if len(parts) == 1 else None
    if get_origin(hint) is dict and not text.startswith("{") and (pairs := PAIR.findall(text)):
        return dict(pairs)
    is_list = get_origin(hint) is list and get_args(hint) == (str,)
    is_number = text.lstrip("-").isdigit()  # no path, and refused with its own message
    return split_paths(text) if is_list and not is_number and not text.startswith("[") else None


def fitted(place: str, value: object, hint: Any, choices: tuple[str, ...]) -> object:
    """Return a value so that it fits the type of its setting.

    Raises:
        UserError: it does not.
    """
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    if isinstance(value, bool) and "off" in choices:
        return "on" if value else "off"  # YAML reads these as true and false
    if value is None and type(None) in kinds:
        return None
    for kind in (kind for kind in kinds if kind is not type(None)):
        if get_origin(kind) is list:
            return _list(place, value, get_args(kind)[0])
        if get_origin(kind) is dict:
            return _dict(place, value)
        if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
            return value
        if kind is bool and isinstance(value, bool):
            return value
        if kind in (int, float) and not isinstance(value, bool):
            if isinstance(value, int) or (kind is float and isinstance(value, float)):
                return value
            if isinstance(value, float) and value.is_integer():
                return int(value)
            if kind is float and isinstance(value, str):
                with suppress(ValueError):
                    return float(value)  # YAML reads 1e-4 as a text
    expected = " or ".join(KINDS.get(kind, "null") for kind in kinds)
    raise UserError(f"{place}={short(value)}; it must be {expected}")


def _list(place: str, value: object, kind: Any) -> object:
    if isinstance(value, str) and kind is str:
        return split_paths(value)
    if not isinstance(value, list) or any(isinstance(item, list | dict) for item in value):
        raise UserError(f"{place}={short(value)}; it must be a list such as [a, b]")
    return value


def _dict(place: str, value: object) -> object:
    example = next((text for name, text in EXAMPLES.items() if place.endswith(name)), "{prompt: question}")
    if not isinstance(value, dict) or any(isinstance(item, list | dict) for item in value.values()):
        raise UserError(f"{place}={short(value)}; it must be a mapping such as {example}")
    return {str(key): item if item is None else str(item) for key, item in value.items()}


def short(value: object) -> str:
    """Return a value on one line of at most 60 characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def nearest_setting(key: str, schema: Any) -> str | None:
    """Return the path of the setting that a key at a wrong place probably means."""
    paths = list(_paths(schema))
    wanted = ALIASES.get(key.rsplit(".", 1)[-1], key.rsplit(".", 1)[-1])
    same = [path for path in paths if path.rsplit(".", 1)[-1] == wanted]
    if same:
        return min(same, key=lambda path: ("members." not in path, path.count("."), path))
    leaves = {path.rsplit(".", 1)[-1]: path for path in reversed(paths)}
    near = difflib.get_close_matches(wanted, list(leaves), n=1, cutoff=0.8)
    return leaves[near[0]] if near else None


def _paths(schema: Any, prefix: str = "") -> Iterator[str]:
    nested, named = sections(schema), named_sections(schema)
    for field in dataclasses.fields(schema):
        if field.name in nested:
            yield from _paths(nested[field.name], f"{prefix}{field.name}.")
        elif field.name in named:
            yield from _paths(named[field.name], f"{prefix}{field.name}.NAME.")
        else:
            yield f"{prefix}{field.name}"


def one_line(text: str) -> str:
    """Return a user's text on one line, for messages."""
    return re.sub(r"\s+", " ", text).strip()
