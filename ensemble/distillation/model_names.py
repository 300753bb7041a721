"""Teacher that knows which models answered: strengths of the models, added to the ensemble's probabilities.

A verdict depends on the models beyond what the ensemble reads from the texts. The student never sees their names: it
learns from a teacher that knows more (learning using privileged information, Lopez-Paz et al. 2016). Imports no torch.

Each model has a strength (Bradley and Terry 1952) and a tendency to tie, with normal priors around 0. The ensemble's
log-probabilities are the offset, so only what these leave over is fitted. Those of a fold are fitted on the other
folds: the label of a battle has no influence on its own target.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.optimize import minimize

from oof.common.errors import UserError
from oof.metrics import Floats, Integers, log_softmax, softmax

PRIOR = 0.5  # standard deviation of strengths and tendencies, in logits
SMALLEST = 1e-12  # probabilities are clamped here before their logarithm is taken


def with_model_names(probs: Floats, table: pl.DataFrame, labels: Integers, folds: Integers) -> NDArray[np.float64]:
    """Return the (n, 3) probabilities of a teacher that knows the models' names.

    Args:
        probs: (n, 3) out-of-fold probabilities of the ensemble.
        table: (n) battles with ``model_a`` and ``model_b``; a battle that lacks a name says nothing about that side.
        labels: (n,) classes.
        folds: (n,) fold numbers.

    Raises:
        UserError: no battle has names.
    """
    models = _model_numbers(table)
    offset, out = np.log(np.maximum(probs, SMALLEST)), np.empty_like(probs, dtype=np.float64)
    for fold in np.unique(folds):
        rest, held = folds != fold, folds == fold
        effects = fit_effects(offset[rest], models[rest], labels[rest])
        out[held] = softmax(offset[held] + _shifts(effects, models[held]))
    out[probs == 0] = 0.0  # of a tie where there are none
    return np.asarray(out / out.sum(axis=1, keepdims=True))


def _model_numbers(table: pl.DataFrame) -> NDArray[np.int64]:
    """Return the (n, 2) numbers of the models that gave A and B; 0 for one without a name."""
    names = pl.concat([table["model_a"], table["model_b"]]).drop_nulls().unique().sort()
    if not len(names):
        raise UserError(
            "distill.names=true: no battle has the columns model_a and model_b; set data.columns for a new RUN, or set "
            "distill.names=false"
        )
    numbers = {name: i + 1 for i, name in enumerate(names.to_list())}
    columns = [table[side].replace_strict(numbers, default=0, return_dtype=pl.Int64) for side in ("model_a", "model_b")]
    return np.stack([column.to_numpy() for column in columns], axis=1)


def fit_effects(offset: Floats, models: Integers, labels: Integers) -> NDArray[np.float64]:
    """Return the (2, m) strengths and tendencies to tie of models 0..m-1, of which 0 has none.

    Args:
        offset: (n, 3) log-probabilities without the models.
        models: (n, 2) numbers of the models of A and B.
        labels: (n,) classes.
    """
    m, (a, b) = int(models.max()) + 1, models.T
    named, truth = (np.arange(m) > 0).astype(np.float64), np.eye(3)[labels]

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        effects = flat.reshape(2, m) * named
        logits = offset + _shifts(effects, models)
        residual = softmax(logits) - truth
        side = (residual[:, 0] - residual[:, 1]) / 2
        strengths = np.bincount(a, side, m) - np.bincount(b, side, m)
        ties = np.bincount(a, residual[:, 2], m) + np.bincount(b, residual[:, 2], m)
        value = -(truth * log_softmax(logits)).sum() + np.square(effects).sum() / (2 * PRIOR**2)
        gradient = np.stack([strengths, ties]) * named + effects / PRIOR**2
        return float(value), gradient.ravel()

    fitted = minimize(loss, np.zeros(2 * m), jac=True, method="L-BFGS-B", options={"maxiter": 1000})
    return np.asarray(fitted.x.reshape(2, m) * named, dtype=np.float64)


def _shifts(effects: Floats, models: Integers) -> NDArray[np.float64]:
    """Return what the models add to the (n, 3) logits; swapping them swaps the first two columns."""
    known = np.where(models < effects.shape[1], models, 0)  # a model of the held-out fold alone has no effect
    strengths, ties = effects[0][known], effects[1][known]
    lead = (strengths[:, 0] - strengths[:, 1]) / 2
    return np.stack([lead, -lead, ties.sum(axis=1)], axis=1)
