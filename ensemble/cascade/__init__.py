"""Cascade: cheap predictions first, dearer ones only for battles that are still uncertain."""
