"""Whole jobs on the user's own models and data, one call each."""
