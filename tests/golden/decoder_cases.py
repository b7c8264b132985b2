"""Tiny decoders that together cover every architectural switch, and their weights from a seed. numpy only.

Shared by the script that makes the goldens (torch and transformers, no jax) and the test that reads them.
"""

import numpy as np

BASE = {
    "vocab_size": 61,
    "num_layers": 3,
    "d_model": 24,
    "d_ff": 40,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "context_length": 64,
}
GEMMA = BASE | {"head_dim": 10, "activation": "gelu_tanh", "embed_scale": True}

# Keyword arguments of DecoderConfig, with those of RopeScaling under "rope_scaling".
CASES = {
    "llama": BASE | {"norm_eps": 1e-5, "rope_theta": 500_000.0, "tied_head": False},
    "llama_tied_scaled": BASE
    | {
        "norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        # Short enough that the six positions' worth of frequencies fall into all three bands.
        "rope_scaling": {
            "kind": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_context_length": 16,
        },
        "head_dim": 12,
    },
    "qwen2": BASE | {"rope_theta": 1_000_000.0, "qkv_bias": True},
    "gemma": GEMMA | {"num_kv_heads": 1},
    "gemma2": GEMMA
    | {
        "num_layers": 4,
        "window": 7,
        "local_layers": (True, False, True, False),
        "post_norms": True,
        "attn_softcap": 4.0,
        "final_softcap": 5.0,
        "query_scale": 16**-0.5,
    },
    "gemma3": GEMMA
    | {
        "num_layers": 7,
        "rope_theta": 1_000_000.0,
        "local_rope_theta": 10_000.0,
        "rope_scaling": {"kind": "linear", "factor": 8.0},
        "window": 5,
        "local_layers": (True, True, True, True, True, False, True),
        "qk_norm": True,
        "post_norms": True,
    },
}
SEEDS = {name: 100 + i for i, name in enumerate(CASES)}
BATCH, LENGTH = 2, 32


def make_tokens(name: str) -> np.ndarray:
    """int32 `[BATCH, LENGTH]`."""
    return np.random.RandomState(SEEDS[name] + 1000).randint(0, BASE["vocab_size"], (BATCH, LENGTH)).astype(np.int32)


def make_params(name: str) -> dict:
    """The case's weights as our nested tree, float32, from a frozen numpy stream.

    Norm scales and biases are far from one and zero, so that a forgotten one shows.
    """
    case = CASES[name]
    random = np.random.RandomState(SEEDS[name])

    def normal(shape, std, mean=0.0):
        return (mean + std * random.standard_normal(shape)).astype(np.float32)

    d, f, n, g, h = (case[k] for k in ("d_model", "d_ff", "num_heads", "num_kv_heads", "head_dim"))

    def kernel(*shape, inner):
        return {"kernel": normal(shape, inner**-0.5)}

    def scale(width):
        return {"scale": normal((width,), 0.3, 1.0)}

    layers = {}
    for i in range(case["num_layers"]):
        layer = {
            "attn_norm": scale(d),
            "q": kernel(n, h, d, inner=d),
            "k": kernel(g, h, d, inner=d),
            "v": kernel(g, h, d, inner=d),
            "o": kernel(d, n, h, inner=n * h),
            "mlp_norm": scale(d),
            "gate": kernel(f, d, inner=d),
            "up": kernel(f, d, inner=d),
            "down": kernel(d, f, inner=f),
        }
        if case.get("qkv_bias"):
            for part, heads in (("q", n), ("k", g), ("v", g)):
                layer[part]["bias"] = normal((heads, h), 0.5)
        if case.get("qk_norm"):
            layer |= {"q_norm": scale(h), "k_norm": scale(h)}
        if case.get("post_norms"):
            layer |= {"post_attn_norm": scale(d), "post_mlp_norm": scale(d)}
        layers[str(i)] = layer
    params = {
        "embed": {"embedding": normal((case["vocab_size"], d), d**-0.5 if case.get("embed_scale") else 0.5)},
        "layers": layers,
        "final_norm": scale(d),
    }
    if not case.get("tied_head", True):
        params["head"] = kernel(case["vocab_size"], d, inner=d)
    return params
