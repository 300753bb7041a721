"""Abstention: thresholds of confidence with a guarantee, and ranges of the training battles."""
