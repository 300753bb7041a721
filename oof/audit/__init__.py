"""Proofs of a finished run's invariants."""
