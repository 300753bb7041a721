"""Scores of predictions, and intervals, standard errors and tests that treat groups of battles as dependent."""
