"""Arrays and data frames of the Python API as inputs of stage two: logits, labels and features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import issparse

from ensemble.features.battle_features import text_features
from oof.classes import CLASSES
from oof.common.errors import UserError
from oof.data.frames import open_frame
from oof.data.schemas import TEXTS
from oof.python_api import read_battles

Logits = dict[str, NDArray[np.float64]]
LARGEST = float(np.finfo(np.float32).max)


class InputError(UserError, ValueError):
    """A problem with an argument, which scikit-learn's tools expect to be a ValueError."""


def members_of(logits: ArrayLike | Mapping[str, ArrayLike]) -> Logits:
    """Return name -> (n, 2, 3) logits of each member, in both orders; logits of one order are used for both.

    Args:
        logits: member -> (n, 3) or (n, 2, 3); or an array of (n, 3 m), (n, m, 3) or (n, m, 2, 3) for m members, which
            get the names m0, m1 …; or a data frame of 3 m columns. Classes are in the order (a, b, tie), and of two
            orders the first is the battle as given, the second the one with A and B swapped, both in class order.

    Raises:
        InputError: a shape is another one, or the members differ in length.
    """
    if isinstance(logits, Mapping) and not issparse(logits):  # of which one kind is a mapping
        members = {str(name): _both_orders(_numbers(values), f"logits of {name}") for name, values in logits.items()}
        lengths = {len(values) for values in members.values()}
        if len(lengths) != 1:
            raise InputError(f"logits: expected as many rows for each member, not {sorted(lengths)}")
        return members
    values = _numbers(logits)
    if values.ndim == 2:
        if not values.shape[1] or values.shape[1] % len(CLASSES):
            raise InputError(
                f"logits: n_features = {values.shape[1]}, but each member has {len(CLASSES)} columns, in the order "
                f"{', '.join(CLASSES)}"
            )
        values = values.reshape(len(values), -1, len(CLASSES))
    if values.ndim not in (3, 4) or values.shape[1] == 0:
        raise InputError(
            f"logits: expected the shape (n, 3 m), (n, m, 3) or (n, m, 2, 3) for m members, not {values.shape}"
        )
    return {f"m{i}": _both_orders(values[:, i], f"logits of member {i}") for i in range(values.shape[1])}


def single_logits(logits: ArrayLike) -> NDArray[np.float64]:
    """Return (n, 3) finite logits of one model; of (n, 2, 3) in both orders the mean.

    Raises:
        InputError: the shape is another one, or a logit is not finite.
    """
    values = _both_orders(_numbers(logits), "logits").mean(axis=1)
    if not np.isfinite(values).all():
        raise InputError(f"logits: {int((~np.isfinite(values)).any(axis=1).sum()):,} rows are not finite")
    return np.asarray(values)


def _numbers(values: Any) -> NDArray[np.float64]:
    try:
        array = open_frame(values).to_numpy() if hasattr(values, "columns") else np.asarray(values)
        return np.asarray(array, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"logits: expected numbers ({error})") from error


def _both_orders(values: NDArray[np.float64], place: str) -> NDArray[np.float64]:
    if values.ndim == 2:
        values = np.repeat(values[:, None], 2, axis=1)
    if values.ndim != 3 or values.shape[1:] != (2, len(CLASSES)):
        raise InputError(f"{place}: expected (n, 3), or (n, 2, 3) in both orders, not {values.shape}")
    if np.abs(values).max(initial=0.0) > LARGEST:  # a comparison with NaN is false: the caller refuses those
        raise InputError(f"{place}: some are larger than {LARGEST:.3g}")
    return values


def classes_of(labels: ArrayLike) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Return (n,) labels in {0, 1, 2}, and the three names of the classes as the labels are written.

    Args:
        labels: (n,) 0, 1 and 2, or "a", "b" and "tie".

    Raises:
        InputError: a label is none of them; the first one is named.
    """
    values = np.asarray(labels)
    if values.ndim != 1:
        raise InputError(f"labels: expected one dimension, not the shape {values.shape}")
    if values.dtype.kind in "UOT" and all(isinstance(value, str) for value in values):
        names: NDArray[Any] = np.array(CLASSES)
    elif values.dtype.kind in "iuf":
        names = np.arange(len(CLASSES))
    else:
        raise InputError(f"labels: Unknown label type: {values.dtype}; write 0 (A wins), 1 (B wins) and 2 (tie)")
    known = np.isin(values, names)
    if not known.all():
        row = int(np.argmin(known))
        raise InputError(
            f"labels: Unknown label type: {values[row].item()!r} in row {row}; write 0 (A wins), 1 (B wins) and "
            f"2 (tie), or {', '.join(CLASSES)}"
        )
    codes = {name: code for code, name in enumerate(names.tolist())}
    return np.array([codes[value] for value in values.tolist()], dtype=np.int64), names


# --- features ------------------------------------------------------------------------------------------------


def battles_of(features: Any) -> pl.DataFrame | None:
    """Return the battles of a frame with prompts and responses as the canonical table; None for other features.

    Raises:
        UserError: a row cannot be used.
    """
    if features is None or not hasattr(features, "columns") or not set(TEXTS) <= set(features.columns):
        return None
    if isinstance(features, pl.DataFrame) and all(features.schema[name] == pl.List(pl.String) for name in TEXTS):
        return features  # with the token counts that a run's table may have
    return read_battles(features)


Features = tuple[pl.DataFrame, dict[str, str]]  # (n) rows, or no columns; column -> family


def features_of_arrays(n: int, features: Any, battles: pl.DataFrame | None) -> Features:
    """Return the features of n battles.

    Args:
        n: rows of the logits.
        features: None, or numbers (n, d); a frame's names say how the columns change when A and B are swapped.
        battles: their canonical table, from which features are made; ``features`` is not read then.

    Raises:
        InputError: numbers of rows differ, or a feature is not a number.
    """
    columns = pl.DataFrame()
    families: dict[str, str] = {}
    if battles is not None:
        columns, families = text_features(battles)
    elif features is not None:
        columns = _feature_columns(features)
        families = dict.fromkeys(columns.columns, "features")
    height = battles.height if battles is not None else columns.height if columns.width else n
    if height != n:
        raise InputError(f"features: {height:,} rows, but the logits have {n:,}")
    return columns, families


def _feature_columns(features: Any) -> pl.DataFrame:
    if hasattr(features, "columns"):
        opened = open_frame(features)
        columns = {str(name): opened[name].to_numpy() for name in opened.columns}
    else:
        values = np.asarray(features)
        if values.ndim != 2:
            raise InputError(f"features: expected (n, d) numbers or a data frame, not the shape {values.shape}")
        columns = {f"x{i}": values[:, i] for i in range(values.shape[1])}
    for name, column in columns.items():
        if column.dtype.kind not in "iufb":
            raise InputError(f"features: column {name!r} holds {column.dtype}, not numbers; encode it first")
        partner = name[:-1] + {"a": "b", "b": "a"}.get(name[-1:], "")
        if name.endswith(("_a", "_b")) and partner not in columns:
            raise InputError(f"features: column {name!r} needs its counterpart {partner!r}; add it, or rename {name!r}")
    return pl.DataFrame({name: column.astype(np.float32) for name, column in columns.items()})
