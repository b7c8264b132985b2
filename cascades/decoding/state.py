"""What a generation carries from round to round (`State`), and what it tells a person (`Info`)."""

from enum import IntEnum
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cascades.distributions import Sampling
from cascades.sharding import Layout
from cascades.typing import Array, Bool, Cache, Float, Int, Key


class Origin(IntEnum):
    """Who wrote a token.

    PROMPT: the user. DRAFT: the drafter, and lossless decoding with the same random numbers would have kept it.
    RULE: the drafter, kept only by the rule. CORRECTION: the verifier, in place of a rejected draft. BONUS: the token
    behind a block that was kept whole. VERIFIER, DRAFTER: a model that decoded alone.
    """

    PROMPT = 0
    DRAFT = 1
    RULE = 2
    CORRECTION = 3
    BONUS = 4
    VERIFIER = 5
    DRAFTER = 6


class Finish(IntEnum):
    """Why a row ended: an end-of-sequence token, its length limit, the host (a stop string), or a model that gives no
    distribution (NaN). VACANT: nobody sits there."""

    RUNNING = 0
    EOS = 1
    LENGTH = 2
    STOP = 3
    ERROR = 4
    VACANT = 5


class Request(NamedTuple):
    """A batch of prompts and how each is decoded; every field is traced and per row.

    tokens: int32 `[b, s]`, right-padded. length: int32 `[b]`, at least 1. limit: int32 `[b]`, most tokens that a row
    may hold, its prompt included. key: one typed key a request. rule: int32 `[b]`, its place among the plan's. alpha:
    the rule's threshold. strict: int32 `[b]`, tokens of the row, its prompt included, up to which each follows the
    verifier's own law whatever the rule is. ignore_eos: rows that no end-of-sequence token ends.
    """

    tokens: Int[Array, "b s"]
    length: Int[Array, " b"]
    limit: Int[Array, " b"]
    key: Key[Array, " b"]
    sampling: Sampling
    rule: Int[Array, " b"]
    alpha: Float[Array, " b"]
    strict: Int[Array, " b"]
    ignore_eos: Bool[Array, " b"]


class Info(NamedTuple):
    """Counts per row, int32 `[b]` but where noted; definitions in README.

    rounds: rounds that the row took part in. verifier_calls: verifier passes. drafter_steps: drafter passes of one
    token. drafted, accepted, rejected: draft tokens that were verified, kept, and replaced (at most one a round);
    drafts behind an end-of-sequence token do not count. found, found_kept: those of `drafted` and `accepted` that a
    look-up drafted. by_rule: accepted only because of the rule. deferred: float,
    the rule's share for the verifier, summed over decided positions; decided: their number. log_p: float, the
    verifier's (alone: the model's own) raw log-probability of the emitted text. histogram: `[b, k_max + 1]`, rounds by
    number of accepted drafts. drafted_at, accepted_at: `[b, k_max]`, the same by position in the draft. drafter_nan: 1
    where the drafter said NaN, and the row went on without it.
    """

    rounds: Int[Array, " b"]
    verifier_calls: Int[Array, " b"]
    drafter_steps: Int[Array, " b"]
    drafted: Int[Array, " b"]
    accepted: Int[Array, " b"]
    rejected: Int[Array, " b"]
    found: Int[Array, " b"]
    found_kept: Int[Array, " b"]
    by_rule: Int[Array, " b"]
    deferred: Float[Array, " b"]
    decided: Int[Array, " b"]
    log_p: Float[Array, " b"]
    histogram: Int[Array, "b m"]
    drafted_at: Int[Array, "b k"]
    accepted_at: Int[Array, "b k"]
    drafter_nan: Int[Array, " b"]


class Clock(NamedTuple):
    """Passes that the loop ran, whoever of the batch they were for; int32. What they take is told by the clock.

    passes: `[w]`, of the verifier, by their place among `Plan.passes`. steps: of the drafter over one token.
    catch_ups: of the drafter over what it had missed. A token cascade counts none.
    """

    passes: Int[Array, " w"]
    steps: Int[Array, ""]
    catch_ups: Int[Array, ""]


class State(NamedTuple):
    """The generation of a batch.

    tokens, origins: int32 `[b, n]`, int8 `[b, n]`. length: tokens of each row that are decided. The last of them is
    pending: no cache holds it yet. finish: int8 `[b]`, a `Finish`.
    verifier_cache: holds `length - 1` tokens of every running row. drafter_cache: holds at most that; it catches up
    when it drafts. draft_logits: float32 `[b, k_max + 1, v]`, scratch of a round, kept so that it is not allocated
    anew. lookahead: the state of the `DraftLength`. silent: rows that draft no more, as the drafter gave no
    distribution (NaN) somewhere. info: what happened so far. clock: what ran so far; it belongs to no row.
    """

    tokens: Int[Array, "b n"]
    origins: Int[Array, "b n"]
    length: Int[Array, " b"]
    limit: Int[Array, " b"]
    finish: Int[Array, " b"]
    key: Key[Array, " b"]
    sampling: Sampling
    rule: Int[Array, " b"]
    alpha: Float[Array, " b"]
    strict: Int[Array, " b"]
    ignore_eos: Bool[Array, " b"]
    verifier_cache: Cache
    drafter_cache: Cache | None
    draft_logits: Float[Array, "b m v"]
    lookahead: Any
    silent: Bool[Array, " b"]
    info: Info
    clock: Clock

    @property
    def running(self) -> Bool[Array, " b"]:
        return self.finish == Finish.RUNNING


def placed(state: State, layout: Layout | None) -> State:
    """Says where a state lives: rows as the batch, logits as the vocabulary; models place their caches."""
    if layout is None:
        return state

    def rows(x: Array) -> Array:
        return layout.constrain(x, ("batch", *(None,) * (x.ndim - 1)))

    def place(name: str, value: Any) -> Any:
        if name == "draft_logits":
            return layout.constrain(value, ("batch", None, "vocab"))
        if name == "clock":
            return jax.tree.map(lambda x: layout.constrain(x, (None,) * x.ndim), value)
        if name.endswith("_cache"):  # of it only what no model places: lengths, and tokens if it holds any
            return jax.tree.map(lambda x: rows(x) if x.ndim <= 2 else x, value)
        return jax.tree.map(rows, value)

    return State(**{name: place(name, value) for name, value in state._asdict().items()})


def stopped_clock(widths: int) -> Clock:
    """Returns zeros, for passes of so many widths."""
    return Clock(jnp.zeros((widths,), jnp.int32), jnp.int32(0), jnp.int32(0))


def empty_info(batch: int, k_max: int) -> Info:
    """Returns zeros."""
    row, wide = jnp.zeros((batch,), jnp.int32), jnp.zeros((batch, k_max), jnp.int32)
    real = jnp.zeros((batch,), jnp.float32)
    histogram = jnp.zeros((batch, k_max + 1), jnp.int32)
    none = dict.fromkeys(Info._fields, row)
    none |= {"deferred": real, "log_p": real, "histogram": histogram, "drafted_at": wide, "accepted_at": wide}
    return Info(**none)
