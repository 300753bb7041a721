"""Infrastructure of every stage: steps and locks of a run folder, atomic files, errors, interrupts, logging."""
