"""Near-duplicate prompts to groups, groups to stratified folds."""
