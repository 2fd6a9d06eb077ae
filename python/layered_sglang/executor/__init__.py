"""Runs one iteration: decode through every layer, a cohort through its layer group."""
