"""Contamination check: prompts of a run that are in a corpus that a base model was trained on."""
