"""Stacking models of other libraries: LightGBMTunerCV, StackingClassifier, AutoGluon.

    python -m benchmarks.speed.other_stackers tuner columns.npz tuner.npz --cores 2 --limit 1200

``benchmarks/speed/stack_peers.py`` writes the columns and starts this script, one model at a time. ``tuner`` is
LightGBMTunerCV of optuna-integration, ``sklearn`` a StackingClassifier of logistic regression and histogram boosting,
``autogluon`` a TabularPredictor. AutoGluon runs in an environment of its own, so this file imports numpy, the one
library and :mod:`oof.classes` alone. For each outer fold a model is trained on the other folds, which are its inner
folds, on every battle in both orders, and its predictions are averaged over both orders, as ours does.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from oof.classes import swap_classes, swap_labels

PATIENCE = 25  # rounds of early stopping, as ours

Predict = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray, float, int], tuple[Predict, dict[str, Any]]]


def splits(inner: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return (training rows, held-out rows) of each inner fold; a list, because a generator would be used up."""
    return [(np.flatnonzero(inner != k), np.flatnonzero(inner == k)) for k in np.unique(inner)]


def tuner(x: np.ndarray, y: np.ndarray, inner: np.ndarray, seconds: float, cores: int) -> Any:
    """Fit LightGBM tuned step by step, then trained on all rows for the best trial's number of rounds."""
    import lightgbm as lgb
    import optuna
    from optuna_integration.lightgbm import LightGBMTunerCV

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed = {"objective": "multiclass", "num_class": 3, "metric": "multi_logloss", "verbosity": -1}
    fixed |= {"num_threads": cores, "seed": 0, "feature_pre_filter": False}
    data = lgb.Dataset(x, y, free_raw_data=False)
    search = LightGBMTunerCV(
        fixed,
        data,
        num_boost_round=1000,
        folds=splits(inner),
        callbacks=[lgb.early_stopping(PATIENCE, verbose=False)],
        time_budget=int(seconds) if seconds else None,
        return_cvbooster=True,
        optuna_seed=0,
        show_progress_bar=False,
    )
    search.run()
    rounds = search.get_best_booster().best_iteration
    booster = lgb.train(search.best_params, lgb.Dataset(x, y), num_boost_round=rounds)
    return booster.predict, {"trials": len(search.study.trials), "rounds": rounds}


def sklearn(x: np.ndarray, y: np.ndarray, inner: np.ndarray, seconds: float, cores: int) -> Any:
    """Fit logistic regression and histogram boosting, combined by a logistic regression on their inner predictions."""
    from sklearn.ensemble import HistGradientBoostingClassifier, StackingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    boosting = HistGradientBoostingClassifier(
        learning_rate=0.05, max_iter=400, max_leaf_nodes=15, early_stopping=True, random_state=0
    )
    members = [
        ("logistic", make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))),
        ("boosting", boosting),
    ]
    model = StackingClassifier(members, LogisticRegression(max_iter=1000), cv=splits(inner)).fit(x, y)
    return model.predict_proba, {}


def autogluon(x: np.ndarray, y: np.ndarray, inner: np.ndarray, seconds: float, cores: int) -> Any:
    """Fit AutoGluon's best_quality preset with our inner folds as its bags: boosting, forests, networks."""
    import pandas as pd
    from autogluon.tabular import TabularPredictor

    def frame(values: np.ndarray) -> Any:
        return pd.DataFrame(values, columns=[f"f{i}" for i in range(values.shape[1])])

    folder = Path(tempfile.mkdtemp())
    kind = "multiclass" if len(np.unique(y)) > 2 else "binary"  # of battles without ties
    options = {"problem_type": kind, "eval_metric": "log_loss", "groups": "inner", "verbosity": 1}
    predictor = TabularPredictor("label", path=str(folder / "predictor"), **options).fit(
        frame(x).assign(label=y, inner=inner),
        time_limit=seconds or None,
        presets="best_quality",
        dynamic_stacking=False,
        num_stack_levels=0,  # the most that AutoGluon allows with given bags
        num_cpus=cores,
        num_gpus=0,
    )
    names = [str(name) for name in predictor.model_names()]

    def predict(values: np.ndarray) -> np.ndarray:
        return predictor.predict_proba(frame(values)).reindex(columns=[0, 1, 2], fill_value=0.0).to_numpy()

    predict.folder = folder  # type: ignore[attr-defined]
    return predict, {"models": len(names)}


LIBRARIES = {"tuner": "optuna_integration.lightgbm", "sklearn": "sklearn.ensemble", "autogluon": "autogluon.tabular"}
FITS: dict[str, Fit] = {"tuner": tuner, "sklearn": sklearn, "autogluon": autogluon}


def count_cpu_seconds() -> None:
    """Make this process's clock count its CPU seconds, so that other work on the machine costs a model no time."""
    begun = time.time()
    time.time = lambda: begun + time.process_time()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", choices=FITS)
    parser.add_argument("columns", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1200, help="seconds for all folds together; 0 = none")
    parser.add_argument("--cpu-seconds", action="store_true", help="the limit is in CPU seconds; for AutoGluon")
    arguments = parser.parse_args()
    data = np.load(arguments.columns)
    x, x_swapped, y, folds = data["x"], data["x_swapped"], data["labels"], data["folds"]
    probs, details = np.empty((len(y), 3)), []
    import_module(LIBRARIES[arguments.model])  # takes seconds, which the limit need not pay
    if arguments.cpu_seconds:
        count_cpu_seconds()
    started = time.time()
    for i, fold in enumerate(np.unique(folds)):
        rest, held = folds != fold, folds == fold
        both_orders = np.concatenate([x[rest], x_swapped[rest]])
        training = both_orders, np.concatenate([y[rest], swap_labels(y[rest])]), np.tile(folds[rest], 2)
        # An even share of the time that is left; what one fold does not use, the next ones may.
        left = arguments.limit - (time.time() - started)
        seconds = max(5.0, left / (len(np.unique(folds)) - i)) if arguments.limit else 0.0
        predict, detail = FITS[arguments.model](*training, seconds, arguments.cores)
        probs[held] = (predict(x[held]) + swap_classes(predict(x_swapped[held]))) / 2
        shutil.rmtree(getattr(predict, "folder", ""), ignore_errors=True)
        details.append(detail)
        print(f"{arguments.model}: fold {fold} after {time.time() - started:.0f} s {detail}", flush=True)
    np.savez(arguments.out, probs=probs, details=json.dumps(details))
    return 0


if __name__ == "__main__":
    sys.exit(main())
