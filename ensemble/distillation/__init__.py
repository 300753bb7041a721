"""Stage three: one student from the ensemble, exported as a Hugging Face folder."""
