"""Training, losses and inference of one classifier."""
