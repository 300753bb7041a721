"""The table of a run and the ablations of stage two."""
