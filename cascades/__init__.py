"""Speculative cascades in JAX: a small drafter, a large verifier, and a rule that decides token by token."""

__version__ = "0.1.0"
