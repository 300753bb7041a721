"""Fold jobs: their data, content keys, execution and scheduling."""
