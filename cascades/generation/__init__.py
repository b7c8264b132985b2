"""Text in, text out: a loaded pair, the shapes that are compiled, the host's side of the loop, what is reported."""

from cascades.generation.engine import Engine, Shapes, build
from cascades.generation.pair import Language, Pair, load_pair, shared_vocabulary
from cascades.generation.results import Result
from cascades.generation.settings import METHODS, Settings
from cascades.generation.stream import Finished, Query, Token, complete, generate, prepare, queries

__all__ = [
    "METHODS",
    "Engine",
    "Finished",
    "Language",
    "Pair",
    "Query",
    "Result",
    "Settings",
    "Shapes",
    "Token",
    "build",
    "complete",
    "generate",
    "load_pair",
    "prepare",
    "queries",
    "shared_vocabulary",
]
