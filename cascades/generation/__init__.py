"""Text in, text out: a pair and a method as they are asked for, the pair in memory, the shapes that are compiled, the
host's side of the loop, what is reported."""

from cascades.generation.engine import Engine, Shapes, build
from cascades.generation.pair import LoadedModel, LoadedPair, load_pair, shared_vocabulary
from cascades.generation.placement import default_dtype, dtype_taken
from cascades.generation.programs import compilation_cache
from cascades.generation.results import Result
from cascades.generation.settings import METHODS, Settings
from cascades.generation.slots import Finished, Query, Slots, Token, named, with_name
from cascades.generation.specs import ModelSpec, PairSpec, PromptSpec
from cascades.generation.stream import complete, generate, prepare, queries, query

__all__ = [
    "METHODS",
    "Engine",
    "Finished",
    "LoadedModel",
    "ModelSpec",
    "LoadedPair",
    "PairSpec",
    "PromptSpec",
    "Query",
    "Result",
    "Settings",
    "Shapes",
    "Slots",
    "Token",
    "build",
    "compilation_cache",
    "complete",
    "default_dtype",
    "dtype_taken",
    "generate",
    "load_pair",
    "named",
    "prepare",
    "queries",
    "query",
    "shared_vocabulary",
    "with_name",
]
