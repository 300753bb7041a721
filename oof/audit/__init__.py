"""Audit of a finished run: checks of its invariants from its files alone."""
