"""Runs that a person starts, each a function that `launch/` calls."""
