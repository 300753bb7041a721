"""Checkpoints to LoRA sequence classifiers, their attention, memory and cost."""
