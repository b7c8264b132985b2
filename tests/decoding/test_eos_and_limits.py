"""Where rows end: end-of-sequence tokens, limits, the end of the buffer, the host's word."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EOS, SLOTS, begin, crowd, decode, lab, request, sequential_text, texts

from cascades.decoding import FREE, Finish

SETUPS = [("maximal", "verifier", 3), ("gumbel", "target", -1)]


@pytest.mark.parametrize(("coupling", "bonus", "forced"), SETUPS)
def test_a_row_ends_with_its_first_end_of_sequence_token(coupling, bonus, forced):
    state = decode(lab(coupling, bonus, ending=True), request(crowd()), forced=forced)
    finish = np.asarray(state.finish)
    for i, (case, text) in enumerate(zip(crowd(), texts(state), strict=True)):
        assert EOS not in text[:-1]
        assert finish[i] == (Finish.EOS if text[-1] == EOS else Finish.LENGTH)
        assert finish[i] == Finish.EOS or len(text) == len(case.prompt) + case.new
        assert not np.any(state.tokens[i, len(text) :])
    assert len(set(finish.tolist())) == 2


def test_text_up_to_the_end_of_the_sequence_is_the_sequential_sample():
    pair = lab("gumbel", ending=True)
    for forced in (-1, 4):
        state = decode(pair, request(crowd()), forced=forced)
        assert texts(state) == [sequential_text(pair, case) for case in crowd()]


def test_a_prompt_may_hold_the_end_of_sequence_token():
    cases = [case._replace(prompt=(EOS, *case.prompt[1:])) for case in crowd()]
    state = decode(lab(bonus="verifier"), request(cases))
    np.testing.assert_array_equal(state.length, [len(case.prompt) + case.new for case in cases])


@pytest.mark.parametrize(("coupling", "bonus", "forced"), SETUPS)
def test_a_row_never_passes_its_limit(coupling, bonus, forced):
    cases = [case._replace(new=i % 7) for i, case in enumerate(crowd())]
    state = decode(lab(coupling=coupling, bonus=bonus), request(cases), forced=forced)
    np.testing.assert_array_equal(state.length, [len(case.prompt) + case.new for case in cases])
    np.testing.assert_array_equal(state.finish, int(Finish.LENGTH))
    column = np.arange(SLOTS)[None]
    assert (np.asarray(state.tokens)[column >= np.asarray(state.length)[:, None]] == 0).all()
    np.testing.assert_array_equal(np.asarray(state.info.rounds) == 0, [case.new == 0 for case in cases])


def test_a_limit_cuts_the_text_and_changes_nothing_before():
    pair = lab(coupling="gumbel")
    long = texts(decode(pair, request(crowd())))
    short = texts(decode(pair, request([case._replace(new=case.new - 11) for case in crowd()])))
    assert short == [text[:-11] for text in long]


def test_rows_fill_the_buffer_to_its_last_slot():
    # Drafts and catch-up passes near the end are wider than what is left. `test_gumbel` compares the same texts.
    pair = lab("gumbel")
    state = decode(pair, request(crowd()), forced=4)
    full = np.asarray(state.length) == SLOTS
    assert full.any()
    ours = texts(state)
    assert [ours[i] for i in np.flatnonzero(full)] == [sequential_text(pair, crowd()[i]) for i in np.flatnonzero(full)]


def test_rounds_may_be_asked_for_piece_by_piece():
    pair = lab(bonus="verifier")
    whole = decode(pair, request(crowd()))
    state = begin(pair, request(crowd()))
    stop, lengths = jnp.zeros((len(crowd()),), bool), []
    while bool(jnp.any(state.running)):
        lengths.append(np.asarray(state.length))
        state = pair.programs.run(
            pair.verifier, pair.drafter, state, stop, jnp.int32(1 + len(lengths) % 3), jnp.int32(FREE)
        )
    assert texts(state) == texts(whole)
    for ours, theirs in zip(jax.tree.leaves(state.info), jax.tree.leaves(whole.info), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    steps = np.diff(lengths, axis=0)
    assert (steps >= 0).all() and steps.max() <= 15


def test_the_host_stops_rows():
    pair = lab(bonus="verifier")
    whole = texts(decode(pair, request(crowd())))
    state = begin(pair, request(crowd()))
    go = np.zeros(len(crowd()), bool)
    state = pair.programs.run(pair.verifier, pair.drafter, state, jnp.asarray(go), jnp.int32(3), jnp.int32(FREE))
    early = texts(state)
    stop = np.arange(len(crowd())) % 4 == 1
    state = pair.programs.run(
        pair.verifier, pair.drafter, state, jnp.asarray(stop), jnp.int32(1 << 20), jnp.int32(FREE)
    )
    for i, text in enumerate(texts(state)):
        assert text == (early[i] if stop[i] else whole[i])
    np.testing.assert_array_equal(state.finish, np.where(stop, int(Finish.STOP), int(Finish.LENGTH)))
