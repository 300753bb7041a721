"""Groups of near-duplicate prompts, and stratified folds of whole groups."""
