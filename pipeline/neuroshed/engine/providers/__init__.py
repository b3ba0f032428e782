"""Where workers run: one file for each kind of place."""
