"""Compiled programs, kept between runs."""

import jax

from cascades.checkpoints import cache_directory


def compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user has a place of their own for them."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # many small ones take long together
