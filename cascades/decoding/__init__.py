"""Draft–verify rounds and the loop around them. Sees models only through the `Model` protocol."""

from cascades.decoding.loop import FREE, Programs, compile_plan
from cascades.decoding.plan import Plan
from cascades.decoding.sequential import advance_sequential, sees_drafter_only
from cascades.decoding.state import Clock, Finish, Info, Origin, Request, State

__all__ = [
    "FREE",
    "Clock",
    "Finish",
    "Info",
    "Origin",
    "Plan",
    "Programs",
    "Request",
    "State",
    "advance_sequential",
    "compile_plan",
    "sees_drafter_only",
]
