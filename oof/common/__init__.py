"""Steps and locks of a run folder, atomic files, errors, interrupts, logging: what every stage needs."""
