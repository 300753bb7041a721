"""LoRA sequence classifiers from decoder checkpoints: attention, precision, optimizations, memory and cost."""
