"""Decodes on meshes of forced host devices and prints what came out; run in processes apart by the tests of sharding.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/mesh_decode.py 1 2 4 8
XLA_FLAGS=--xla_force_host_platform_device_count=2 python tests/mesh_decode.py --join=localhost:1234,2,0 4  # and …,2,1
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np

from cascades import hosts, lookahead, models, rules, sharding
from cascades.checkpoints.reader import put
from cascades.decoding import FREE, Plan, Request, compile_plan
from cascades.distributions import Sampling
from cascades.lookahead import given_costs

MESHES = {
    "1": (1, 1, "tensor", "tensor"),
    "2": (1, 2, "tensor", "vocab"),
    "4": (2, 2, "tensor", "replicated"),
    "4 model": (1, 4, "tensor", "vocab"),
    "4 fsdp": (2, 2, "fsdp", "fsdp"),
    "4 data": (4, 1, "replicated", "replicated"),
    "8": (1, 8, "tensor", "tensor"),
    "8 data": (4, 2, "tensor", "vocab"),
    "8 fsdp": (2, 4, "fsdp", "fsdp"),
    "1 t5": (1, 1, "tensor", "tensor"),
    "4 t5": (2, 2, "tensor", "vocab"),
    "8 t5": (1, 8, "tensor", "tensor"),
}
VOCAB, SLOTS, BATCH = 64, 64, 4
SHAPE = {"vocab_size": VOCAB, "head_dim": 8, "context_length": SLOTS, "final_softcap": 30.0, "post_norms": True}
VERIFIER = models.DecoderConfig(
    **SHAPE, num_layers=3, d_model=32, d_ff=64, num_heads=8, num_kv_heads=4, window=8, local_layers=(True, False, True)
)
DRAFTER = models.DecoderConfig(**SHAPE, num_layers=1, d_model=16, d_ff=48, num_heads=4, num_kv_heads=1, qk_norm=True)
T5 = {"vocab_size": VOCAB, "head_dim": 8, "context_length": SLOTS, "buckets": 8, "max_distance": 16}
LARGE_T5 = models.T5Config(**T5, num_layers=2, num_decoder_layers=2, d_model=32, d_ff=64, num_heads=8)
SMALL_T5 = models.T5Config(**T5, num_layers=1, num_decoder_layers=1, d_model=16, d_ff=48, num_heads=4, gated=False)


def weights(config, seed):
    params = models.build(config).init(jax.random.key(seed))
    return jax.tree.map(lambda leaf: 2 * leaf if leaf.ndim > 1 else leaf, params)


def request() -> Request:
    """Two greedy rows and two sampled ones, of different lengths."""
    temperature = jnp.asarray([0.0, 1.0, 0.0, 0.7], jnp.float32)
    full = lambda value, dtype: jnp.full((BATCH,), value, dtype)  # noqa: E731
    return Request(
        tokens=jax.random.randint(jax.random.key(3), (BATCH, 8), 0, VOCAB, jnp.int32),
        length=jnp.asarray([3, 8, 5, 1], jnp.int32),
        limit=full(48, jnp.int32),
        key=jax.random.split(jax.random.key(4), BATCH),
        sampling=Sampling(temperature, full(0, jnp.int32), full(0.9, jnp.float32), full(0.0, jnp.float32)),
        rule=full(0, jnp.int32),
        alpha=full(0.4, jnp.float32),
        strict=jnp.asarray([0, 12, 0, 4], jnp.int32),
        ignore_eos=full(False, jnp.bool_),
    )


def decode(data: int, model: int, verifier: str, drafter: str, configs=(VERIFIER, DRAFTER)) -> dict:
    """Returns the tokens of every row, and the shapes of what the compiled loop gathers and copies."""
    mesh = sharding.mesh_of(jax.devices()[: data * model], data, model)
    large, small = sharding.layout(mesh, verifier), sharding.layout(mesh, drafter)
    params = [
        jax.tree.map(lambda x, at: put(np.asarray(x), at), tree, layout.shardings(models.logical_axes(tree), tree))
        for tree, layout in ((weights(configs[0], 0), large), (weights(configs[1], 1), small))
    ]
    plan = Plan(
        verifier=models.build(configs[0], layout=large),
        drafter=models.build(configs[1], layout=small),
        rules=(rules.token_v3,),
        lookahead=lookahead.verifier_guided(patience=2),
        k_max=3,
        vocab_size=VOCAB,
        layout=large,
    )
    programs = compile_plan(plan)
    initial = hosts.everywhere(plan.lookahead.init(BATCH, given_costs(3, 0.1)), mesh)
    state = programs.start(*params, hosts.everywhere(request(), mesh), initial, SLOTS)
    rest = np.zeros((BATCH,), bool), np.int32(100), np.int32(FREE)
    compiled = programs.run.lower(*params, state, *rest).compile()
    text = compiled.as_text()
    state = compiled(*params, state, *rest)
    tokens, length, accepted = hosts.whole((state.tokens, state.length, state.info.accepted))
    return {
        "tokens": [row[: int(n)].tolist() for row, n in zip(tokens, length, strict=True)],
        "accepted": int(accepted.sum()),
        "gathered": sorted(set(re.findall(r"= (\w+\[[\d,]*\])\S* all-gather\(", text))),
        "cache": sorted({str(leaf.sharding.shard_shape(leaf.shape)) for leaf in state.verifier_cache.keys}),
        "held": sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params[0])),
    }


if __name__ == "__main__":
    names = [name for name in sys.argv[1:] if not name.startswith("--join=")]
    for argument in set(sys.argv[1:]) - set(names):
        coordinator, processes, process = argument.removeprefix("--join=").split(",")
        hosts.join(coordinator, int(processes), int(process))
    pairs = {name: (LARGE_T5, SMALL_T5) if name.endswith("t5") else (VERIFIER, DRAFTER) for name in names}
    print(json.dumps({name: decode(*MESHES[name], pairs[name]) for name in names}))
