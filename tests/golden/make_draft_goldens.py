"""Records what look-up and drafter of the default pair would draft at each position of the verifier's own answers.

    PYTHONPATH=. python tests/golden/make_draft_goldens.py drafts.jsonl && gzip -n drafts.jsonl

The answers are greedy ones to the prompts of configs/data/held_out.jsonl. A line is `{"kind": …, "positions": […]}`. Of
a position, room: tokens that may still be drafted. accepted, expected: how many of the drafter's tokens stand, and
1 - D_TV of each and of the first that does not. top: how sure the drafter is of each. matched, found_accepted,
found_expected: the same of what was looked up, and behind how many tokens that had occurred before.

An answer that is there already is not recorded again, so that the script goes on where it was stopped.
"""

import pathlib
import re
import sys
from functools import partial

import jax
import jax.numpy as jnp

from cascades import cache, lookahead, rules
from cascades.decoding import draft
from cascades.decoding import round as rounds
from cascades.decoding.lookup import find
from cascades.generation import ModelSpec, PairSpec, Settings, build, engine, load_pair, queries, records

K, NEW = 8, 96
PROMPTS = "configs/data/held_out.jsonl"
KINDS = {  # of its categories; all others are questions
    **dict.fromkeys(("humaneval", "coding"), "code"),
    **dict.fromkeys(("gsm8k", "math_reasoning", "math"), "gsm8k"),
    **dict.fromkeys(("summarization", "rag", "extraction"), "copying"),
    "translation": "translation",
}
KNOBS = "".join(pathlib.Path(f"configs/knobs/{name}.gin").read_text() for name in ("verifier", "pair"))


def knob(name: str) -> str:
    found = re.search(rf"^{name} = '(.*?)'", KNOBS, re.MULTILINE)
    assert found
    return found.group(1)


def main(target: str) -> None:
    spec = PairSpec(verifier=ModelSpec(uri=knob("VERIFIER")), drafter=ModelSpec(uri=knob("DRAFTER")), dtype="bfloat16")
    settings = Settings(
        rule=rules.lossless, k_max=K, lookahead=lookahead.fixed(K), max_new_tokens=NEW, costs=(0.1, (1.0,) * (K + 1))
    )
    built = build(load_pair(spec), settings)
    asked, done = records.load(PROMPTS), len(records.load(target))
    given = queries(built, [each["prompt"] for each in asked])
    slots = engine.slots_for(built, [len(query.ids) + NEW + K + 2 for query in given])
    start, step = built.programs.start, jax.jit(partial(position, built.programs.plan), donate_argnums=2)
    weights = built.verifier_params, built.drafter_params
    with records.open_append(target) as file:
        for line, query in list(zip(asked, given, strict=True))[done:]:
            width = engine.prompt_width(built, len(query.ids), slots)
            request = engine.row(built, width, query.ids, min(len(query.ids) + NEW, slots))
            state = start(*weights, request, engine.initial(built, 1, lookahead.given_costs(K, 0.1)), slots)
            positions = []
            while bool(state.running[0]):
                seen, state = step(*weights, state)
                positions.append(told(*jax.device_get(seen)))
            kind = KINDS.get(line["category"], "questions")
            records.append(file, {"kind": kind, "positions": positions})
            print(kind, len(positions), flush=True)


def position(plan, verifier_params, drafter_params, state):
    """Drafts as many tokens as there is room for, by the model and by the look-up; then goes on by one token."""
    keys, draft_keys = rounds.round_keys(state, K, plan.coupling)
    continuation = find(plan.lookup, state.tokens, state.length, K)
    room = jnp.clip(state.limit - state.length - 1, 0, K)
    asked = draft.no_drafts(state, room)
    by_model, drafter_cache, _, _ = draft.draft(plan, drafter_params, state, asked, draft_keys, jnp.bool_(True))
    found = draft.looked_up(asked, continuation, room)
    seen, verifier_cache, blocks = [], state.verifier_cache, []
    for drafts in (by_model, found, draft.no_drafts(state, 0 * room)):
        state = state._replace(verifier_cache=cache.rewind(verifier_cache, state.length - 1))
        _, block, verifier_cache, _, _ = rounds._verify(plan, verifier_params, state, drafts, keys)
        seen.append((drafts.length, block.accepted, block.expected, drafts.top))
        blocks.append(block)
    token = blocks[-1].token[:, None]
    new, _ = rounds.append(state, token, 0 * token, 0 * room + 1, plan.eos, blocks[-1].failed)
    rewound = cache.rewind(drafter_cache, jnp.minimum(drafter_cache.length, state.length))
    verifier_cache = cache.rewind(verifier_cache, new.length - 1)
    return (seen[0], seen[1], continuation.matched), new._replace(verifier_cache=verifier_cache, drafter_cache=rewound)


def told(by_model, found, matched) -> dict:
    def liked(of) -> list[float]:
        return [abs(round(float(x), 3)) for x in of[2][0][: int(of[1][0]) + 1]]

    return {
        "room": int(by_model[0][0]),
        "accepted": int(by_model[1][0]),
        "expected": liked(by_model),
        "top": [round(float(x), 4) for x in by_model[3][0]],
        "matched": int(matched[0]),
        "found_accepted": int(found[1][0]),
        "found_expected": liked(found),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
