"""Weights: where they come from, the formats they come in, and our own format."""

from cascades.checkpoints.contents import Contents, Problem, contents
from cascades.checkpoints.convert import convert
from cascades.checkpoints.load import Checkpoint, load, read_config
from cascades.checkpoints.orbax import save
from cascades.checkpoints.sources import cache_directory, resolve

__all__ = [
    "Checkpoint",
    "Contents",
    "Problem",
    "cache_directory",
    "contents",
    "convert",
    "load",
    "read_config",
    "resolve",
    "save",
]
