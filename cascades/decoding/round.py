"""One round: draft, verify in a pass as wide as this round's longest draft, decide, emit, rewind."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from cascades import cache as caches
from cascades.decoding.control import when
from cascades.decoding.draft import Draft, draft, no_drafts, window
from cascades.decoding.state import Finish, Info, Origin, State
from cascades.distributions import Purpose, stream
from cascades.lookahead import DraftLength, Verdict
from cascades.rules import Rule
from cascades.sharding import Layout
from cascades.speculation import Block, Bonus, Coupling, Keys, empty_block, judge
from cascades.typing import Array, Bool, Cache, Int, Model, Params


class Plan(NamedTuple):
    """What is static in a program.

    verifier: scores. drafter: drafts; None decodes with the verifier alone. rule, lookahead: of this run. k_max:
    longest draft. vocab_size: logits behind it are padding and cut off. eos: ids that end a row. coupling, bonus: see
    `speculation`.
    alone: the origin of tokens when there is no drafter. layout: where the verifier lives; None is one device.
    """

    verifier: Model
    drafter: Model | None
    rule: Rule
    lookahead: DraftLength
    k_max: int
    vocab_size: int
    eos: tuple[int, ...] = ()
    coupling: Coupling = "maximal"
    bonus: Bonus = "verifier"
    alone: Origin = Origin.VERIFIER
    layout: Layout | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Tokens of the verifier passes that are compiled: 1, 2, 3, 5, 9, … and k_max + 1."""
        if self.drafter is None:
            return (1,)
        powers = [1 + (1 << i) for i in range(self.k_max.bit_length()) if 1 << i < self.k_max]
        return (1, *powers, self.k_max + 1) if self.k_max else (1,)


def advance(plan: Plan, verifier_params: Params, drafter_params: Params, state: State, forced: Int[Array, ""]) -> State:
    """Runs one round for every running row.

    Args:
      forced: where not negative, the draft length of every row in place of the lookahead's.
    """
    k_max = plan.k_max if plan.drafter else 0
    running = state.running
    room = jnp.where(running, state.limit - state.length, 1)  # one of them is for the verifier's own token

    if plan.drafter is None:
        drafts = no_drafts(state, jnp.zeros_like(state.length))
        lookahead_state, drafter_cache = state.lookahead, None
    else:
        lookahead_state, length = plan.lookahead.propose(state.lookahead)
        length = jnp.where(forced >= 0, forced, length)
        length = jnp.where(running, jnp.clip(length, 0, jnp.minimum(room - 1, k_max)), 0).astype(jnp.int32)
        drafts, drafter_cache, lookahead_state = draft(
            plan.drafter,
            drafter_params,
            state._replace(lookahead=lookahead_state),
            length,
            plan.lookahead,
            plan.coupling,
            plan.bonus,
            plan.vocab_size,
            forced >= 0,
        )

    drafts, block, verifier_cache, partial = _verify(plan, verifier_params, state, drafts)
    return _emit(plan, state, drafts, block, partial, verifier_cache, drafter_cache, lookahead_state, k_max)


def _verify(plan: Plan, params: Params, state: State, drafts: Draft) -> tuple[Draft, Block, Cache, Bool[Array, " b"]]:
    """One verifier pass over each row's pending token and drafts, in the narrowest compiled width that holds them.

    A draft that the verifier cannot read (NaN) spoils what it says of its whole row, since a weight of 0 times NaN is
    NaN. Such a row is read again without its drafts, which is enough to judge the first of them.

    Returns:
      The drafts that were judged, the verdict, the cache, and the rows that go on without a token behind their draft:
      it was kept, and was not read.
    """
    k_max = drafts.tokens.shape[1]
    pending = window(state.tokens, state.length - 1, 1, state.length)

    def at_width(width: int, tokens: Array, length: Array):
        def run(carry):
            _, cache, _ = carry
            output, cache = plan.verifier.extend(params, jnp.concatenate([pending, tokens[:, : width - 1]], 1), cache)
            positions = state.length[:, None] + jnp.arange(width, dtype=jnp.int32)[None, :]
            keys = Keys(
                accept=stream(state.key, positions[:, : width - 1], Purpose.ACCEPT),
                token=stream(state.key, positions, Purpose.TOKEN),
            )
            block = judge(
                drafts.tokens[:, : width - 1],
                length,
                drafts.logits[:, :width],
                output.logits[:, :, : plan.vocab_size],
                keys,
                plan.rule,
                state.alpha,
                state.sampling,
                plan.coupling,
                plan.bonus if plan.drafter else "verifier",
                drafts.scored,
            )
            unread = jnp.zeros_like(state.running)
            if output.features is not None:
                unread = state.running & ~jnp.all(jnp.isfinite(output.features), axis=(1, 2))
            wide, missing = (0, 0), (0, k_max + 1 - width)
            log_p = jnp.pad(block.log_p[:, : width - 1], (wide, missing))
            block = block._replace(
                lossless=jnp.pad(block.lossless, (wide, missing)),
                expected=jnp.pad(block.expected, (wide, missing)),
                defer=jnp.pad(block.defer, (wide, missing)),
                log_p=jnp.concatenate([log_p, block.log_p[:, width - 1 :]], axis=1),
            )
            return block, cache, unread

        return run

    def attempt(carry):
        turn, block, cache, spoilt = carry
        first = turn == 0
        tokens = jnp.where(first, drafts.tokens, pending)
        length = jnp.where(spoilt, 1, drafts.length)
        need = jnp.where(first, jnp.max(drafts.length) + 1, 2)
        found = empty_block(spoilt.shape[0], k_max), cache, jnp.zeros_like(spoilt)
        for below, width in zip((0, *plan.widths), plan.widths, strict=False):
            found = when((need > below) & (need <= width), at_width(width, tokens, length), found)
        new, cache, unread = found
        block = _where(first | spoilt, new, block)
        unread &= first & (drafts.length > 0)

        def clean(cache: Cache) -> Cache:
            stands = jnp.where(unread, state.verifier_cache.length, state.length + block.accepted)  # the others stay
            return caches.scrub(caches.rewind(cache, stands))

        return turn + 1, block, when(jnp.any(unread), clean, cache), spoilt | unread

    def more(carry):
        turn, _, _, spoilt = carry
        return (turn == 0) | ((turn == 1) & jnp.any(spoilt))

    none = jnp.zeros_like(state.running)
    carry = jnp.int32(0), empty_block(none.shape[0], k_max), state.verifier_cache, none
    # A loop, so that the passes of all widths are compiled once.
    _, block, cache, spoilt = lax.while_loop(more, attempt, carry) if k_max else attempt(carry)
    judged = drafts._replace(length=jnp.where(spoilt, 1, drafts.length))
    partial = spoilt & (block.accepted > 0)
    return judged, block._replace(failed=block.failed & ~partial), cache, partial


def _emit(plan, state, drafts, block, partial, verifier_cache, drafter_cache, lookahead_state, k_max) -> State:
    """Appends each row's accepted drafts and the token behind them; rewinds both caches to what stands."""
    running = state.running
    column = jnp.arange(k_max + 1, dtype=jnp.int32)[None, :]
    accepted = block.accepted[:, None]
    padded = jnp.pad(drafts.tokens, ((0, 0), (0, 1)))
    tokens = jnp.where(column < accepted, padded, block.token[:, None])

    bonus = jnp.where(drafts.length == block.accepted, int(Origin.BONUS), int(Origin.CORRECTION))
    behind = bonus if plan.drafter else jnp.full_like(bonus, int(plan.alone))
    kept = jnp.where(jnp.pad(block.lossless, ((0, 0), (0, 1))), int(Origin.DRAFT), int(Origin.RULE))
    origins = jnp.where(column < accepted, kept, behind[:, None])
    written = block.accepted + jnp.where(block.failed | partial, 0, 1)
    new, emitted = append(state, tokens, origins, written, plan.eos, block.failed)
    count = new.length - state.length

    if drafter_cache is not None:
        held = jnp.minimum(state.length + jnp.minimum(drafts.cached, block.accepted), new.length - 1)
        took_part = drafts.cached >= 0
        drafter_cache = caches.rewind(drafter_cache, jnp.where(took_part, held, state.drafter_cache.length))
    verifier_cache = caches.rewind(verifier_cache, jnp.where(running, new.length - 1, state.verifier_cache.length))

    decided = running[:, None] & (column <= accepted) & (column < drafts.length[:, None]) & emitted
    decided = decided[:, :k_max]
    if plan.drafter:
        kept_drafts = jnp.minimum(block.accepted, count)
        verdict = Verdict(drafts.steps, drafts.length, kept_drafts, block.expected, decided, drafts.top)
        lookahead_state = _where(running, plan.lookahead.update(lookahead_state, verdict), lookahead_state)
    return new._replace(
        verifier_cache=verifier_cache,
        drafter_cache=drafter_cache,
        draft_logits=drafts.logits,
        lookahead=lookahead_state,
        silent=drafts.silent,
        info=_count(state, drafts, block, decided, emitted, count),
    )


def append(
    state: State,
    tokens: Int[Array, "b m"],
    origins: Int[Array, "b m"],
    count: Int[Array, " b"],
    eos: tuple[int, ...],
    failed: Bool[Array, " b"],
) -> tuple[State, Bool[Array, "b m"]]:
    """Appends the first `count[b]` tokens to each running row, up to and including an end-of-sequence token.

    Behind them there is no token for rows that `failed`: they end.

    Returns:
      The state with tokens, origins, length and finish brought up to date, and which of `tokens` were appended.
    """
    batch, width = tokens.shape
    column = jnp.arange(width, dtype=jnp.int32)[None, :]
    is_eos = jnp.zeros(tokens.shape, bool)
    for token in eos:
        is_eos |= tokens == token
    is_eos &= (column < count[:, None]) & ~state.ignore_eos[:, None]
    ended = jnp.any(is_eos, axis=1)
    count = jnp.where(ended, jnp.argmax(is_eos, axis=1).astype(jnp.int32) + 1, count)
    count = jnp.where(state.running, count, 0).astype(jnp.int32)

    emitted = column < count[:, None]
    slots = jnp.where(emitted, state.length[:, None] + column, state.tokens.shape[1])
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None]
    length = state.length + count
    finish = jnp.where(length >= state.limit, int(Finish.LENGTH), int(Finish.RUNNING))
    finish = jnp.where(ended, int(Finish.EOS), jnp.where(failed, int(Finish.ERROR), finish))
    return state._replace(
        tokens=state.tokens.at[rows, slots].set(tokens, mode="drop"),
        origins=state.origins.at[rows, slots].set(origins.astype(state.origins.dtype), mode="drop"),
        length=length,
        finish=jnp.where(state.running, finish, state.finish).astype(state.finish.dtype),
    ), emitted


def _count(state: State, drafts: Draft, block: Block, decided, emitted, count) -> Info:
    """Adds a round to the statistics. A draft behind the end of a row is neither drafted nor rejected."""
    info, running = state.info, state.running
    k_max = decided.shape[1]
    column = jnp.arange(k_max + 1, dtype=jnp.int32)[None, :]
    cut_short = count < block.accepted + 1
    drafted = jnp.where(running, jnp.where(cut_short, count, drafts.length), 0)
    accepted = jnp.where(running, jnp.minimum(block.accepted, count), 0)
    rejected = running & ~cut_short & (block.accepted < drafts.length)
    one = running.astype(jnp.int32)
    kept = column[:, :k_max] < accepted[:, None]
    index = jnp.minimum(column, block.accepted[:, None])
    last = jnp.where(column == block.accepted[:, None], k_max, index)  # the token behind the drafts is stored last
    log_p = jnp.take_along_axis(block.log_p, last, axis=1)
    return Info(
        rounds=info.rounds + one,
        verifier_calls=info.verifier_calls + one,
        drafter_steps=info.drafter_steps + drafts.steps,
        drafted=info.drafted + drafted,
        accepted=info.accepted + accepted,
        rejected=info.rejected + rejected.astype(jnp.int32),
        by_rule=info.by_rule + jnp.sum(kept & ~block.lossless, axis=1).astype(jnp.int32),
        deferred=info.deferred + jnp.sum(jnp.where(decided, block.defer, 0.0), axis=1),
        decided=info.decided + jnp.sum(decided, axis=1).astype(jnp.int32),
        log_p=info.log_p + jnp.sum(jnp.where(emitted, log_p, 0.0), axis=1),
        histogram=info.histogram + ((column == accepted[:, None]) & running[:, None]).astype(jnp.int32),
        drafted_at=info.drafted_at + (column[:, :k_max] < drafted[:, None]).astype(jnp.int32),
        accepted_at=info.accepted_at + kept.astype(jnp.int32),
        drafter_nan=info.drafter_nan + (drafts.silent & ~state.silent).astype(jnp.int32),
    )


def _where(rows: Bool[Array, " b"], new, old):
    """Chooses per row between two pytrees whose leaves all lead with the batch axis."""

    def choose(a, b):
        return jnp.where(rows.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(choose, new, old)
