"""Versions of how stage two makes its columns and its trials: raise one when the same input would give other values.

They are part of the stage's key, so older results are made again. They stand here, apart from the code that they
speak of, because the key is needed to say "up to date", which need not wait for LightGBM and SciPy.
"""

from __future__ import annotations

FEATURES = 3  # columns of the design: :mod:`ensemble.features.battle_features`, :mod:`ensemble.features.design_matrix`
TUNING = 4  # trials, inner folds, combiners: :mod:`ensemble.stacking.tuning`, :mod:`ensemble.stacking.selection`
