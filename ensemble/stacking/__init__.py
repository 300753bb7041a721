"""Stage two: combining and calibrating out-of-fold logits, cross-fitted."""
