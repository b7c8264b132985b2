"""Requests that are decoded side by side: each has its own settings and its own text, and rows are not left idle."""

import jax
import pytest
import tiny

from cascades import lookahead, rules
from cascades.errors import UserError
from cascades.generation import Settings, build, complete, generate, load_pair, named, queries, query
from cascades.generation import engine as engines
from cascades.generation.slots import Finished, Slots, Token

PROMPTS = ["the quick brown fox", "a small model", "12 + 3", "the", "lazy dog jumps over the quick brown fox " * 3]


@pytest.fixture(scope="module")
def pair(tiny_files):
    return load_pair(tiny.specs(verifier=tiny_files.verifier, drafter=tiny_files.drafter)["pair"])


@pytest.fixture(scope="module")
def engine(pair):
    """One that serves every test: `fixed` measures no costs, and the gumbel coupling makes samples comparable."""
    settings = Settings(
        rule=rules.lossless, lookahead=lookahead.fixed(3), k_max=3, coupling="gumbel", batch_size=3, max_new_tokens=24
    )
    return build(pair, settings)


def mixed(engine):
    """Fifteen requests of which no two are alike."""
    base = queries(engine, PROMPTS)
    changes = [
        {},
        {"temperature": 1.0, "seed": 7, "ignore_eos": True},
        {"temperature": 0.8, "top_k": 5, "max_new_tokens": 9, "stop": ("e",)},
    ]
    return named([query._replace(**change) for change in changes for query in base])


def test_a_request_has_its_own_settings_and_its_own_text(engine):
    requests = mixed(engine)
    alone = [complete(engine, [request])[0] for request in requests]
    for results in (
        complete(engine, requests),
        complete(engine, requests, rounds=2),
        complete(engine, requests[::-1])[::-1],
    ):
        for result, expected in zip(results, alone, strict=True):
            assert (result.token_ids, result.text, result.finish_reason) == (
                expected.token_ids, expected.text, expected.finish_reason,
            )  # fmt: skip
    assert any(result.finish_reason == "stop" for result in alone)
    assert all("e" not in result.text for result in alone[10:])
    assert len({tuple(result.token_ids) for result in alone[:5]} & {tuple(r.token_ids) for r in alone[5:10]}) < 5


def test_fixed_batches_write_the_same(engine):
    requests = mixed(engine)[:7]
    ours, fixed = complete(engine, requests), complete(engine, requests, together=True)
    assert [result.token_ids for result in ours] == [result.token_ids for result in fixed]
    starts = [round(result.stats["start_s"], 4) for result in fixed]
    assert len(set(starts[:3])) == len(set(starts[3:6])) == 1 and starts[0] < starts[3] < starts[6]


def test_a_free_row_is_taken_at_once(engine):
    """While requests wait, no row is empty for longer than the look at its end."""
    lengths = [4, 24, 8, 24, 4, 12, 24, 4, 16, 4, 24, 8]
    base = queries(engine, [f"{PROMPTS[0]} {at}" for at in range(len(lengths))])
    requests = [
        query._replace(max_new_tokens=count, ignore_eos=True) for query, count in zip(base, lengths, strict=True)
    ]
    seated, rounds, ended = [], [], 0
    original = engines.proceed

    def proceed(engine, compiled, state, stop, count, forced=-1, eager=False):
        before = jax.device_get((state.info.rounds, state.running))
        state = original(engine, compiled, state, stop, count, 0, eager)  # a token a round
        after = jax.device_get(state.info.rounds)
        done = max(after[row] - before[0][row] for row in range(3) if before[1][row])
        if ended + 3 < len(requests):
            rounds.append(int(done))
            seated.append(sum(int(after[row] - before[0][row]) for row in range(3)))
        return state

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "proceed", proceed)
        for event in generate(engine, requests, rounds=8):
            ended += isinstance(event, Finished)
    assert ended == len(requests)
    assert sum(seated) >= 0.9 * 3 * sum(rounds)


def test_prompts_of_any_length_share_their_programs(pair, monkeypatch):
    engine = build(pair, Settings(rule=rules.lossless, lookahead=lookahead.fixed(2), k_max=2, batch_size=2))
    compiled, original = [], jax.stages.Lowered.compile

    def count(self, *args, **kwargs):
        compiled.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(jax.stages.Lowered, "compile", count)
    complete(engine, [query._replace(max_new_tokens=3) for query in queries(engine, PROMPTS[:2])])
    assert len(compiled) == 4  # prefill, an empty state, insertion, loop
    complete(engine, [query._replace(max_new_tokens=200) for query in queries(engine, [PROMPTS[4], "a"])])
    assert len(compiled) == 4


def test_requests_of_different_rules_share_a_program(pair, monkeypatch):
    """Each has the text of an engine whose only rule is its own."""
    common = {"lookahead": lookahead.fixed(3), "k_max": 3, "coupling": "gumbel", "batch_size": 2, "max_new_tokens": 12}
    chosen = (("lossless", 0.0), ("chow", 0.9), ("token_v3", 0.9))
    engine = build(pair, Settings(rule=rules.lossless, more_rules=(rules.chow, rules.token_v3), **common))
    ids = queries(engine, PROMPTS[:1])[0].ids
    hot = {"temperature": 1.0, "seed": 3}
    requests = [query(engine, "", ids, rule=rule, alpha=alpha)._replace(**hot) for rule, alpha in chosen]
    requests = [
        each._replace(name=(0, 0)) for each in [*requests, *(each._replace(temperature=0.0) for each in requests)]
    ]
    expected = [
        complete(
            build(pair, Settings(rule=getattr(rules, each.rule), alpha=each.alpha, **common)),
            [each._replace(rule=None)],
        )[0]
        for each in requests
    ]
    assert len({tuple(result.token_ids) for result in expected}) > 3  # else a rule would not matter
    complete(engine, requests[:2])
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *args, **kwargs: pytest.fail("compiled again"))
    for order in (requests, requests[::-1]):
        results = complete(engine, order)
        results = results if order is requests else results[::-1]
        assert [result.token_ids for result in results] == [result.token_ids for result in expected]


def test_a_rule_that_is_not_compiled_in_is_told_before_anything_is(pair, monkeypatch):
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda *args, **kwargs: pytest.fail("compiled"))
    engine = build(pair, Settings(rule=rules.opt, alpha=2.0, more_rules=(rules.chow,), lookahead=lookahead.fixed(2)))
    first = queries(engine, PROMPTS[:1])[0]
    with pytest.raises(UserError, match=r"the rule must be one that is compiled in \(opt, chow\), not 'bild'"):
        complete(engine, [first, first._replace(rule="bild")])
    with pytest.raises(UserError, match="ALPHA for chow must be a number from 0 to 1, not 2.0"):
        complete(engine, [first, first._replace(rule="chow")])
    with pytest.raises(UserError, match="^prompt 1 of 1: ALPHA for chow must be a number from 0 to 1, not '0.3'"):
        queries(engine, PROMPTS[:1], rule="chow", alpha="0.3")


def test_a_request_may_be_admitted_while_another_is_decoded(engine):
    first, second = queries(engine, PROMPTS[:2])
    expected = [complete(engine, [each])[0].token_ids for each in (first, second)]
    slots = Slots(engine, engines.Shapes(3, engines.slots_for(engine, [200])), first)
    assert slots.free == 3 and not slots.busy
    slots.admit([(0, first)])
    events = [event for _ in range(3) for event in slots.step(1)]
    assert slots.free == 2 and any(isinstance(event, Token) for event in events)
    slots.admit([(1, second)])
    while slots.busy:
        events += slots.step(2)
    ended = {event.index: event.result.token_ids for event in events if isinstance(event, Finished)}
    assert ended == dict(enumerate(expected))


@pytest.mark.parametrize("method", ["token_cascade", "oracle_cascade", "sequence_cascade", "verifier_only"])
def test_every_method_takes_requests_of_several_rules(pair, method):
    common = {"method": method, "lookahead": lookahead.fixed(1), "k_max": 1, "max_new_tokens": 6, "batch_size": 2}
    engine = build(pair, Settings(rule=rules.chow, alpha=0.9, more_rules=(rules.chow_log,), **common))
    first = queries(engine, PROMPTS[:1])[0]
    asked = [first, first._replace(rule="chow_log", alpha=0.01)]
    found = [result.token_ids for result in complete(engine, asked)]
    expected = [complete(engine, [each])[0].token_ids for each in asked]
    assert found == expected
    if method == "token_cascade":
        other = build(pair, Settings(rule=rules.chow_log, alpha=0.01, **common))
        assert found[1] == complete(other, [first._replace(alpha=0.01)])[0].token_ids != found[0]
