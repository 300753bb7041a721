"""Design matrix of the stacker: OOF logits and battle features, of each battle as given and with A and B swapped.

A model that is trained on both orders and averages its output over both cannot favour a side. Logits are joined by id,
never by position.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.special import entr, rel_entr

from ensemble.features import battle_features
from ensemble.features.term_counts import TermCounts, count_terms
from oof.classes import TIE, pinned_as, swap_orders, with_tie, without_ties
from oof.common.errors import UserError
from oof.common.logits_format import COUNT_COLUMNS, LOGIT_COLUMNS
from oof.metrics import log_softmax, mean_of_orders, softmax

FEATURES_VERSION = 3  # part of the stage's key: raise it when the same battles would give other columns

Columns = dict[str, NDArray[np.floating]]


@dataclass(frozen=True)
class Design:
    """Inputs of the combiners for n battles.

    Attributes:
        x: (n, d) float32 features as given.
        x_swapped: (n, d) the same with A and B swapped.
        pool: (n, m, 3) float64 centred mean-of-orders log-probabilities of each member.
        orders: (n, m, 2, 3) float32 logits of each member, from which the columns of members are made.
        names: the d columns.
        families: column -> family.
        members: the m members.
        ids: the n battles.
        terms: term counts of the n battles for the text baseline, where they were asked for (:func:`add_terms`).
        ties: whether a battle can end in a tie: false where every member's tie is pinned, as are all members' then.
    """

    x: NDArray[np.float32]
    x_swapped: NDArray[np.float32]
    pool: NDArray[np.float64]
    orders: NDArray[np.float32]
    names: list[str]
    families: dict[str, str]
    members: list[str]
    ids: list[str]
    terms: TermCounts | None = None
    ties: bool = True

    @property
    def one_order(self) -> bool:
        """Whether every member scored one order only, which stands for both."""
        return bool(np.array_equal(self.orders[:, :, 0], self.orders[:, :, 1]))

    def take(self, rows: NDArray[np.integer]) -> Design:
        return replace(
            self,
            x=self.x[rows],
            x_swapped=self.x_swapped[rows],
            pool=self.pool[rows],
            orders=self.orders[rows],
            ids=[self.ids[i] for i in rows],
            terms=None if self.terms is None else self.terms.take(rows),
        )

    def keep(self, members: Sequence[str]) -> Design:
        """Return the design with these members alone, in this order; columns between members are made anew.

        Raises:
            UserError: a member is missing.
        """
        if list(members) == self.members:
            return self
        absent = [name for name in members if name not in self.members]
        if absent:
            raise UserError(f"the stack was fitted with the member {absent[0]!r}, whose logits these battles lack")
        at = [self.members.index(name) for name in members]
        others = [i for i, name in enumerate(self.names) if not _of_members(self.families[name])]
        given = {name: self.orders[:, i] for name, i in zip(members, at, strict=True)}
        columns, families = _logit_columns(given)
        swapped, _ = _logit_columns({name: swap_orders(values) for name, values in given.items()})
        names = [self.names[i] for i in others]
        return replace(
            self,
            x=np.column_stack([self.x[:, others], *columns.values()]).astype(np.float32),
            x_swapped=np.column_stack([self.x_swapped[:, others], *swapped.values()]).astype(np.float32),
            pool=self.pool[:, at],
            orders=self.orders[:, at],
            names=[*names, *columns],
            families={name: self.families[name] for name in names} | families,
            members=list(members),
        )

    def columns(self, family: str) -> list[int]:
        """Return the positions of a family's columns."""
        return [i for i, name in enumerate(self.names) if self.families[name] == family]


def join_logits(ids: Sequence[str], frame: pl.DataFrame, file: str = "logits file") -> NDArray[np.float32]:
    """Return (n, 2, 3) logits in the order of ``ids`` from a frame in the open logits format.

    Raises:
        UserError: an id is missing, extra or repeated, or a logit is not finite (with counts).
    """
    absent = [name for name in ("id", *LOGIT_COLUMNS) if name not in frame.columns]
    if absent:
        raise UserError(f"{file}: missing column {absent[0]!r}; expected id and {', '.join(LOGIT_COLUMNS)}")
    frame = frame.select(pl.col("id").cast(pl.String), *LOGIT_COLUMNS)
    ours = pl.DataFrame({"id": pl.Series(ids, dtype=pl.String)})
    repeated = frame.height - frame["id"].n_unique()
    twice = frame["id"].filter(frame["id"].is_duplicated())
    missing = ours.join(frame, on="id", how="anti")["id"]
    extra = frame.join(ours, on="id", how="anti")["id"].unique(maintain_order=True)
    if repeated or len(missing) or len(extra):
        first = "".join(
            f"; first {problem}: {ids_of[0]}"
            for problem, ids_of in (("missing", missing), ("unknown", extra), ("repeated", twice))
            if len(ids_of)
        )
        raise UserError(
            f"{file}: {len(missing):,} battles missing, {len(extra):,} unknown, {repeated:,} repeated; "
            f"it must hold each scored battle once{first}"
        )
    rows = ours.join(frame, on="id", how="left", maintain_order="left")
    logits = rows.select(LOGIT_COLUMNS).to_numpy().astype(np.float32)
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise UserError(f"{file}: {broken} battles have logits that are not finite; score them again")
    return logits.reshape(-1, 2, 3)


def with_counts(table: pl.DataFrame, frame: pl.DataFrame) -> pl.DataFrame:
    """Return battles with the token counts of a frame in the open logits format, if it has them: features use them."""
    if not set(COUNT_COLUMNS) <= set(frame.columns):
        return table
    return table.join(frame.select("id", *COUNT_COLUMNS), on="id", how="left", validate="1:1", maintain_order="left")


def build_design(table: pl.DataFrame, logits: dict[str, NDArray[np.floating]]) -> Design:
    """Return the design matrix of battles with each member's logits.

    Args:
        table: (n) canonical battles, with or without token counts (:func:`with_counts`).
        logits: member -> (n, 2, 3) logits in the table's order.

    Raises:
        UserError: there is no member, or a logit is not finite.
    """
    texts, families = battle_features.text_features(table)
    return design_of(table["id"].to_list(), texts, families, logits)


def design_of(
    ids: Sequence[str],
    features: pl.DataFrame,
    families: Mapping[str, str],
    logits: Mapping[str, NDArray[np.floating]],
) -> Design:
    """Return the design matrix of battles with these features and each member's logits.

    Args:
        ids: (n,).
        features: (n) rows, or no columns; the names say how they change when A and B are swapped
            (:func:`ensemble.features.battle_features.swap_features`).
        families: each column's family.
        logits: as in :func:`build_design`.

    Raises:
        UserError: there is no member, or a logit is not finite.
    """
    if not logits:
        raise UserError("no member's logits to stack")
    for name, values in logits.items():
        if values.shape != (len(ids), 2, 3) or not np.isfinite(values).all():
            raise UserError(f"logits of {name}: expected finite numbers of shape ({len(ids)}, 2, 3)")
    columns, families_of_logits = _logit_columns(logits)
    families = {**families, **families_of_logits}
    x = _matrix(features, columns)
    swapped = {name: swap_orders(values) for name, values in logits.items()}
    x_swapped = _matrix(battle_features.swap_features(features), _logit_columns(swapped)[0])
    pool = np.stack([_centred(mean_of_orders(values)) for values in logits.values()], axis=1)
    orders = np.stack([values.astype(np.float32) for values in logits.values()], axis=1)
    ties = not all(map(without_ties, logits.values()))
    return Design(x, x_swapped, pool, orders, list(families), families, list(logits), list(ids), ties=ties)


def add_terms(design: Design, table: pl.DataFrame) -> Design:
    """Return the design of (n) battles with the term counts of their texts; without texts it stays as it is."""
    return replace(design, terms=count_terms(table)) if battle_features.has_text(table) else design


def add_member(design: Design, name: str, logits: NDArray[np.floating]) -> Design:
    """Return the design with one more member; the columns between members stay those of the other members.

    Args:
        design: (n) battles.
        name: of the member.
        logits: (n, 2, 3), finite.
    """
    if not design.ties:
        logits = with_tie(logits[..., :TIE])
    columns, swapped = _member(name, logits), _member(name, swap_orders(logits))
    x, x_swapped = (
        np.column_stack([old, *new.values()]).astype(np.float32)
        for old, new in ((design.x, columns), (design.x_swapped, swapped))
    )
    centred = _centred(mean_of_orders(logits))
    return replace(
        design,
        x=x,
        x_swapped=x_swapped,
        pool=np.concatenate([design.pool, centred[:, None]], axis=1),
        orders=np.concatenate([design.orders, logits[:, None].astype(np.float32)], axis=1),
        names=[*design.names, *columns],
        families=design.families | dict.fromkeys(columns, f"member:{name}"),
        members=[*design.members, name],
    )


def _of_members(family: str) -> bool:
    return family == "between" or family.startswith("member:")


def _centred(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    logp = log_softmax(logits)
    logp = pinned_as(logp, logp)  # without the rounding of files, from which a combiner could learn
    return np.asarray(logp - logp.mean(axis=-1, keepdims=True))


def _matrix(texts: pl.DataFrame, logit_columns: Columns) -> NDArray[np.float32]:
    return np.column_stack([*(series.to_numpy() for series in texts), *logit_columns.values()]).astype(np.float32)


def _logit_columns(logits: Mapping[str, NDArray[np.floating]]) -> tuple[Columns, dict[str, str]]:
    """Return the columns made from members' logits, and each column's family: member:NAME or between."""
    columns: Columns = {}
    families: dict[str, str] = {}
    for name, values in logits.items():
        of_member = _member(name, values)
        columns |= of_member
        families |= dict.fromkeys(of_member, f"member:{name}")
    between = _between(logits) if logits else {}
    return columns | between, families | dict.fromkeys(between, "between")


def _member(name: str, logits: NDArray[np.floating]) -> dict[str, NDArray[np.float64]]:
    """One member's logits: margin of a over b and pull towards a tie, per order and in the mean; the entropy; how far
    the orders disagree, and the position bias (advantage of the response shown first).
    """
    # A member's name cannot hold a colon, so columns of different members never share a name.
    mean = _centred(mean_of_orders(logits))
    probs = softmax(mean)
    ab, ba = (_centred(logits[:, order].astype(np.float64)) for order in (0, 1))
    return {
        f"{name}:margin": mean[:, 0] - mean[:, 1],
        f"{name}:tie": mean[:, 2],
        f"{name}:margin_ab": ab[:, 0] - ab[:, 1],
        f"{name}:margin_ba": ba[:, 0] - ba[:, 1],
        f"{name}:tie_ab": ab[:, 2],
        f"{name}:tie_ba": ba[:, 2],
        f"{name}:first_shown": (ab - ba)[:, 0] - (ab - ba)[:, 1],
        f"{name}:entropy": entr(probs).sum(axis=1),
        f"{name}:disagreement": np.abs(ab - ba).max(axis=1),
    }


def _between(logits: Mapping[str, NDArray[np.floating]]) -> dict[str, NDArray[np.float64]]:
    """Agreement of the members: mean and spread of their margins and pulls towards a tie, the share of members with the
    most common prediction, and the divergence of each pair (Jensen-Shannon).
    """
    means = [_centred(mean_of_orders(values)) for values in logits.values()]
    margins = np.stack([mean[:, 0] - mean[:, 1] for mean in means])
    columns = {"between::margin": margins.mean(axis=0), "between::spread": margins.std(axis=0)}
    ties = np.stack([mean[:, 2] for mean in means])
    columns |= {"between::tie": ties.mean(axis=0), "between::tie_spread": ties.std(axis=0)}
    predicted = np.stack([mean.argmax(axis=1) for mean in means])
    columns["between::agreement"] = np.max([(predicted == c).mean(axis=0) for c in range(3)], axis=0)
    for (i, first), (j, second) in combinations(enumerate(means), 2):
        columns[f"between::divergence_{i}_{j}"] = _jensen_shannon(softmax(first), softmax(second))
    return columns


def _jensen_shannon(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    m = (p + q) / 2
    return np.asarray((rel_entr(p, m) + rel_entr(q, m)).sum(axis=1) / 2)


def describe() -> dict[str, str]:
    """Return the meaning of every family of columns, from the docstrings; "member:NAME" is for every member."""
    functions = {**battle_features.FAMILIES, "member:NAME": _member, "between": _between}
    return {name: " ".join((inspect.getdoc(function) or "").split()) for name, function in functions.items()}
