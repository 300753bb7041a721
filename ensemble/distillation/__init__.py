"""Stage three: distillation of the ensemble into one student, exported as a Hugging Face folder."""
