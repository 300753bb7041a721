"""Contamination check: which prompts are in a corpus that a base model was trained on."""
