"""Evaluation of a run: the table of its predictors and the ablations of stage two."""
