"""Runs that a person starts: decode, sweep, benchmark."""
