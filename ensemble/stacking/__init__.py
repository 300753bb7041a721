"""Stage two: combining and calibrating out-of-fold logits, cross-fitted."""

from __future__ import annotations

# Part of the stage's key: raise it when the same input would give other trials, inner folds, combiners or choices. It
# is kept here because the key is needed to say "up to date", without the seconds that importing LightGBM takes.
STACKING_VERSION = 9
