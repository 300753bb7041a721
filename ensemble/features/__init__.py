"""Battle features and the design matrix of the stacker."""
