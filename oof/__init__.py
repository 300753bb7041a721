"""Stage one: preference data to out-of-fold logits. Knows nothing of :mod:`ensemble`."""
