"""One round: draft, verify in a pass as wide as this round's longest draft, decide, emit, rewind."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from cascades import cache as caches
from cascades.decoding.control import run_if
from cascades.decoding.draft import Draft, draft, looked_up, no_drafts, window
from cascades.decoding.lookup import find
from cascades.decoding.plan import CHOICE, Plan
from cascades.decoding.state import Finish, Info, Origin, State
from cascades.distributions import Purpose, greedy, stream
from cascades.lookahead import Verdict
from cascades.speculation import Block, Coupling, Kept, Keys, conclude, keep, no_verdict
from cascades.typing import Array, Bool, Cache, Int, Key, Params


def advance(plan: Plan, verifier_params: Params, drafter_params: Params, state: State, forced: Int[Array, ""]) -> State:
    """Runs one round for every running row.

    Args:
      forced: where not negative, the draft length of every row in place of the lookahead's; the drafter drafts, if
        there is one.
    """
    peers = state.running if plan.together else None
    keys, draft_keys = round_keys(state, plan.longest, plan.coupling)
    drafts, drafter_cache = no_drafts(state, jnp.zeros_like(state.length)), state.drafter_cache
    if plan.drafter or plan.lookup:
        state, drafts = _proposed(plan, state, drafts, peers, forced)
    if plan.drafter:
        drafts, drafter_cache, guide, clock = draft(plan, drafter_params, state, drafts, draft_keys, peers, forced >= 0)
        state = state._replace(lookahead=guide, clock=clock)

    drafts, block, verifier_cache, partial, passes = _verify(plan, verifier_params, state, drafts, keys)
    state = state._replace(clock=state.clock._replace(passes=passes))
    return _emit(plan, state, drafts, block, partial, peers, verifier_cache, drafter_cache)


def _proposed(
    plan: Plan, state: State, drafts: Draft, peers: Bool[Array, " b"] | None, forced: Int[Array, ""]
) -> tuple[State, Draft]:
    """Asks the lookahead what to draft, and looks it up: the drafts that were found, and how many are left to draft."""
    matched, continuation = jnp.zeros_like(state.length), None
    if plan.lookup:
        continuation = find(plan.lookup, state.tokens, state.length, plan.k_max)
        matched = continuation.matched
    guide, length, found = plan.lookahead.propose(state.lookahead, matched, peers)
    length = jnp.where(forced >= 0, forced, length)
    found = jnp.where(forced >= 0, 0 if plan.drafter else forced, jnp.where(matched > 0, found, 0))
    room = jnp.minimum(state.limit - state.length - 1, plan.k_max)  # one is left for the verifier's own token
    length, found = (jnp.where(state.running, jnp.clip(x, 0, room), 0).astype(jnp.int32) for x in (length, found))
    if continuation:
        drafts = looked_up(drafts._replace(length=length if plan.drafter else found), continuation, found)
    else:
        drafts = drafts._replace(length=length)
    return state._replace(lookahead=guide), drafts


def round_keys(state: State, k_max: int, coupling: Coupling) -> tuple[Keys, Key[Array, "b m"]]:
    """Returns the random keys of a round: those that judge, and those of its draws of drafts.

    Under the maximal coupling no two rounds share one of the latter, though a rejection makes them draft the same
    position again: the draft length may then depend on how long an earlier draft was, hence on tokens that were dropped
    unjudged.
    """
    count = np.arange(k_max + 1, dtype=np.int32)
    # All of them at once: what makes a key is compiled once.
    ahead = np.concatenate([count, count, 0 * count])
    purposes = np.concatenate([0 * count + Purpose.ACCEPT, 0 * count + Purpose.TOKEN, Purpose.DRAFT + count])
    keys = stream(state.key, state.length[:, None] + jnp.asarray(ahead)[None, :], purposes.astype(np.int32))
    accept, token, drafts = (keys[:, i * (k_max + 1) : (i + 1) * (k_max + 1)] for i in range(3))
    return Keys(accept[:, :k_max], token), token if coupling == "gumbel" else drafts


def choice(plan: Plan, state: State) -> Int[Array, " b"]:
    """Returns each row's rule; of several, a row that has ended chooses none, so that it costs no evaluation."""
    return state.rule if len(plan.rules) == 1 else jnp.where(state.running, state.rule, -1)


def _verify(
    plan: Plan, params: Params, state: State, drafts: Draft, keys: Keys
) -> tuple[Draft, Block, Cache, Bool[Array, " b"], Int[Array, " w"]]:
    """One verifier pass over each row's pending token and drafts, in the narrowest compiled width that holds them.

    A draft that the verifier cannot read (NaN) spoils what it says of its whole row, since a weight of 0 times NaN is
    NaN. Such a row is read again without its drafts, which is enough to judge the first of them. That pass is the
    widest: it writes over whatever the first one wrote.

    Returns:
      The drafts that were judged, the verdict, the cache, and the rows that go on without a token behind their draft:
      it was kept, and was not read. The clock's passes, with those of this round.
    """
    k_max = drafts.tokens.shape[1]
    pending = window(state.tokens, state.length - 1, 1, state.length)
    column = jnp.arange(k_max, dtype=jnp.int32)[None, :]

    def at_width(fed: Array, asked: Draft):
        return lambda carry: verifier_pass(plan, params, state, asked, keys, fed, carry[1])

    def attempt(carry):
        turn, kept, cache, spoilt, passes = carry
        first = turn == 0
        tokens = jnp.where(first & (column < drafts.length[:, None]), drafts.tokens, pending)
        fed = jnp.concatenate([pending, tokens], axis=1)
        asked = drafts._replace(length=jnp.where(spoilt, 1, drafts.length))
        need = jnp.where(first, jnp.max(drafts.length) + 1, k_max + 1)
        outcome, holds = (kept, cache, jnp.zeros_like(spoilt)), []
        for below, width in zip((0, *plan.passes), plan.passes, strict=False):
            holds.append((need > below) & (need <= width))
            outcome = run_if(holds[-1], at_width(fed[:, :width], asked), outcome)
        ran = jnp.stack(holds).astype(jnp.int32)
        new, cache, unread = outcome
        kept = _where(first | spoilt, new, kept)
        unread &= first & (drafts.length > 0)
        stands = jnp.where(unread, state.verifier_cache.length, state.length + kept.accepted)  # the others stay
        return turn + 1, kept, caches.rewind(cache, stands), spoilt | unread, passes + ran

    def more(carry):
        turn, _, _, spoilt, _ = carry
        return (turn == 0) | ((turn == 1) & jnp.any(spoilt))

    nothing = no_verdict(pending.shape[0], k_max, plan.vocab_size)
    carry = jnp.int32(0), nothing, state.verifier_cache, jnp.zeros_like(state.running), state.clock.passes
    # A loop, so that the passes of all widths are compiled once.
    _, kept, cache, spoilt, passes = lax.while_loop(more, attempt, carry) if k_max else attempt(carry)
    judged = drafts._replace(length=jnp.where(spoilt, 1, drafts.length))
    block = verdict(plan, state, judged, keys, kept)
    partial = spoilt & (block.accepted > 0)
    return judged, block._replace(failed=block.failed & ~partial), cache, partial, passes


def verifier_pass(
    plan: Plan, params: Params, state: State, drafts: Draft, keys: Keys, fed: Int[Array, "b s"], cache: Cache
) -> tuple[Kept, Cache, Bool[Array, " b"]]:
    """A pass of the verifier over `fed`, each row's pending token and drafts, and which of these are kept.

    What a pass costs is planned by compiling this function and `verdict` alone.

    Args:
      drafts: of which the first `s - 1` are judged, up to their length. fed: another token stands in place of a draft
        that a row does not ask about.

    Returns:
      What became of all of the round's drafts; the cache; and the rows whose features are NaN or infinite.
    """
    width, k_max = fed.shape[1], drafts.tokens.shape[1]
    output, cache = plan.verifier.extend(params, fed, cache)
    with jax.named_scope(CHOICE):
        kept = keep(
            drafts.tokens[:, : width - 1],
            drafts.length,
            drafts.logits if plan.drafter else None,
            output.logits[:, :, : plan.vocab_size],
            Keys(keys.accept[:, : width - 1], keys.token[:, :width]),
            plan.rules,
            choice(plan, state),
            state.alpha,
            state.sampling,
            plan.coupling,
            drafts.matched[:, : width - 1] > 0 if plan.lookup else None,
            state.strict - state.length,
        )
        missing = (0, 0), (0, k_max + 1 - width)
        names = "lossless", "expected", "defer", "log_p"
        kept = kept._replace(**{name: jnp.pad(getattr(kept, name), missing) for name in names})
    unread = jnp.zeros_like(state.running)
    if output.features is not None:
        unread = state.running & ~jnp.all(jnp.isfinite(output.features), axis=(1, 2))
    return kept, cache, unread


def verdict(plan: Plan, state: State, drafts: Draft, keys: Keys, kept: Kept) -> Block:
    """Draws the token behind the drafts that were kept."""
    with jax.named_scope(CHOICE):
        given = plan.rules, choice(plan, state), state.alpha, state.sampling, plan.coupling
        logits, found = drafts.logits if plan.drafter else None, drafts.matched > 0 if plan.lookup else None
        behind = plan.bonus, drafts.scored, found, state.strict - state.length
        return conclude(kept, drafts.tokens, drafts.length, logits, keys, *given, *behind)


def _emit(
    plan: Plan,
    state: State,
    drafts: Draft,
    block: Block,
    partial: Bool[Array, " b"],
    peers: Bool[Array, " b"] | None,
    verifier_cache: Cache,
    drafter_cache: Cache | None,
) -> State:
    """Appends each row's accepted drafts and the token behind them; rewinds both caches to what stands.

    Args:
      state: before the round, but for the lookahead's, which has seen the drafts. partial: rows that get no token
        behind their drafts. Both caches hold the round's drafts.
    """
    tokens, origins = _spoken(plan, drafts, block)
    written = block.accepted + jnp.where(block.failed | partial, 0, 1)
    new, emitted = append(state, tokens, origins, written, plan.eos, block.failed)

    read = jnp.where(state.running, new.length - 1, state.verifier_cache.length)
    verifier_cache = caches.rewind(verifier_cache, read)
    if drafter_cache is not None:
        assert state.drafter_cache is not None
        held = jnp.minimum(state.length + jnp.minimum(drafts.cached, block.accepted), new.length - 1)
        took_part = drafts.cached >= 0
        drafter_cache = caches.rewind(drafter_cache, jnp.where(took_part, held, state.drafter_cache.length))

    column = jnp.arange(drafts.tokens.shape[1], dtype=jnp.int32)[None, :]
    decided = state.running[:, None] & (column <= block.accepted[:, None]) & (column < drafts.length[:, None])
    decided &= emitted[:, :-1]
    count, guide = new.length - state.length, state.lookahead
    if plan.drafter or plan.lookup:
        kept = jnp.minimum(block.accepted, count)
        counted = jnp.ones_like(state.running) if plan.coupling == "gumbel" else greedy(state.sampling)
        seen = drafts.steps, drafts.length, kept, block.expected, decided, drafts.top, drafts.matched, counted, peers
        guide = _where(state.running, plan.lookahead.update(guide, Verdict(*seen)), guide)
    return new._replace(
        verifier_cache=verifier_cache,
        drafter_cache=drafter_cache,
        draft_logits=drafts.logits,
        lookahead=guide,
        silent=drafts.silent,
        info=_count(state, drafts, block, decided, emitted, count),
    )


def _spoken(plan: Plan, drafts: Draft, block: Block) -> tuple[Int[Array, "b m"], Int[Array, "b m"]]:
    """Returns each row's drafts and, from where its block ends, the token behind them; and who wrote them."""
    drafted = jnp.arange(drafts.tokens.shape[1] + 1, dtype=jnp.int32)[None, :] < block.accepted[:, None]
    room = (0, 0), (0, 1)
    tokens = jnp.where(drafted, jnp.pad(drafts.tokens, room), block.token[:, None])
    whole = drafts.length == block.accepted
    behind = (
        jnp.where(whole, int(Origin.BONUS), int(Origin.CORRECTION)) if plan.drafter or plan.lookup else int(plan.alone)
    )
    kept = jnp.where(jnp.pad(block.lossless, room), int(Origin.DRAFT), int(Origin.RULE))
    origins = jnp.where(drafted, kept, jnp.broadcast_to(behind, block.token.shape)[:, None])
    return tokens, origins


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
    count = jnp.where(ended, jnp.min(jnp.where(is_eos, column, width), axis=1) + 1, count)
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
    kept, found = column[:, :k_max] < accepted[:, None], drafts.matched > 0
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
        found=info.found + jnp.sum(found & (column[:, :k_max] < drafted[:, None]), axis=1).astype(jnp.int32),
        found_kept=info.found_kept + jnp.sum(found & kept, axis=1).astype(jnp.int32),
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
