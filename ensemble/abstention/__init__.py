"""Abstention: thresholds of confidence with a guarantee, and what the training battles were like."""
