"""Control flow on the device that leaves caches where they are."""

from collections.abc import Callable
from typing import TypeVar

import jax.numpy as jnp
from jax import lax

from cascades.typing import Array, Bool

Carry = TypeVar("Carry")


def run_if(true: Bool[Array, ""], do: Callable[[Carry], Carry], carry: Carry) -> Carry:
    """Returns `do(carry)` if `true`, else `carry`.

    A loop of at most one turn, since a loop updates its carry in place. Of `lax.cond` and `lax.switch` XLA copies every
    buffer that a branch writes to, on the way in and on the way out: two copies of a cache in each round.
    """

    def once(state):
        return jnp.zeros((), bool), do(state[1])

    return lax.while_loop(lambda state: state[0], once, (true, carry))[1]
