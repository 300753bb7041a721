"""Scores, intervals and tests that respect groups."""
