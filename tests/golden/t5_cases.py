"""Tiny encoder–decoders of both kinds of T5, and their weights from a seed. numpy only.

Shared by the script that makes the goldens (torch and transformers, no jax) and the tests that read them.
"""

import numpy as np

BASE = {
    "vocab_size": 61,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "d_model": 24,
    "d_ff": 40,
    "num_heads": 4,
    "head_dim": 6,
    "context_length": 96,
    # Few and near, so that 40 tokens fall into all of them.
    "buckets": 8,
    "max_distance": 20,
}
# Keyword arguments of T5Config.
CASES = {
    "v1_0": BASE | {"gated": False, "tied_head": True, "scaled_head": True},
    "v1_1": BASE | {"gated": True, "tied_head": False, "scaled_head": False},
}
SEEDS = {name: 300 + i for i, name in enumerate(CASES)}
INPUT, OUTPUT = 40, 30
LENGTHS = (40, 25)  # of the inputs; the rest is padding


def make_tokens(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The encoder's input, int32 `[2, INPUT]`, and the decoder's, `[2, OUTPUT]`, which begins with the start token."""
    random = np.random.RandomState(SEEDS[name] + 1000)
    given = random.randint(1, BASE["vocab_size"], (2, INPUT)).astype(np.int32)
    decoded = random.randint(1, BASE["vocab_size"], (2, OUTPUT)).astype(np.int32)
    decoded[:, 0] = 0
    return given, decoded


def make_params(name: str) -> dict:
    """The case's weights as our nested tree, float32, from a frozen numpy stream; norm scales are far from one."""
    case = CASES[name]
    random = np.random.RandomState(SEEDS[name])
    d, f, n, h = (case[k] for k in ("d_model", "d_ff", "num_heads", "head_dim"))

    def normal(shape, std, mean=0.0):
        return (mean + std * random.standard_normal(shape)).astype(np.float32)

    def kernel(*shape, inner):
        return {"kernel": normal(shape, inner**-0.5)}

    def scale():
        return {"scale": normal((d,), 0.3, 1.0)}

    def attention():
        return {each: kernel(n, h, d, inner=d) for each in "qkv"} | {"o": kernel(d, n, h, inner=n * h)}

    def feed():
        gate = {"gate": kernel(f, d, inner=d)} if case["gated"] else {}
        return gate | {"up": kernel(f, d, inner=d), "down": kernel(d, f, inner=f)}

    def layer(crosses):
        cross = {"cross_norm": scale(), "cross": attention()} if crosses else {}
        return {"attn_norm": scale(), "attn": attention()} | cross | {"mlp_norm": scale(), "mlp": feed()}

    params = {
        "embed": {"embedding": normal((case["vocab_size"], d), 1.0)},
        "encoder": {str(i): layer(False) for i in range(case["num_layers"])},
        "encoder_bias": normal((case["buckets"], n), 1.0),
        "encoder_norm": scale(),
        "decoder": {str(i): layer(True) for i in range(case["num_decoder_layers"])},
        "decoder_bias": normal((case["buckets"], n), 1.0),
        "decoder_norm": scale(),
    }
    return params if case["tied_head"] else params | {"head": kernel(case["vocab_size"], d, inner=d)}


def huggingface_config(name: str) -> dict:
    """What transformers writes into config.json."""
    case = CASES[name]
    return {
        "model_type": "t5",
        "vocab_size": case["vocab_size"],
        "num_layers": case["num_layers"],
        "num_decoder_layers": case["num_decoder_layers"],
        "d_model": case["d_model"],
        "d_ff": case["d_ff"],
        "num_heads": case["num_heads"],
        "d_kv": case["head_dim"],
        "feed_forward_proj": "gated-gelu" if case["gated"] else "relu",
        "tie_word_embeddings": case["tied_head"],
        "relative_attention_num_buckets": case["buckets"],
        "relative_attention_max_distance": case["max_distance"],
        "decoder_start_token_id": 0,
    }


def huggingface_tensors(name: str, params: dict) -> dict[str, np.ndarray]:
    """Names and layouts of transformers: heads flattened, matrices `[out, in]`."""
    case = CASES[name]
    d = case["d_model"]
    tensors = {"shared.weight": params["embed"]["embedding"]}
    if "head" in params:
        tensors["lm_head.weight"] = params["head"]["kernel"]
    for stack in ("encoder", "decoder"):
        tensors[f"{stack}.final_layer_norm.weight"] = params[f"{stack}_norm"]["scale"]
        first = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        tensors[first] = params[f"{stack}_bias"]
        for i, layer in params[stack].items():
            parts = [("attn", "SelfAttention"), ("cross", "EncDecAttention"), ("mlp", "DenseReluDense")]
            for j, (part, theirs) in enumerate(each for each in parts if each[0] in layer):
                at = f"{stack}.block.{i}.layer.{j}."
                tensors[f"{at}layer_norm.weight"] = layer[f"{part}_norm"]["scale"]
                inputs = {"gate": "wi_0", "up": "wi_1" if case["gated"] else "wi", "down": "wo"}
                for name, matrix in layer[part].items():
                    kernel = matrix["kernel"]
                    flat = kernel.reshape(d, -1) if name == "o" else kernel.reshape(-1, kernel.shape[-1])
                    tensors[f"{at}{theirs}.{inputs.get(name, name)}.weight"] = flat
    return tensors


def t5x_tree(params: dict) -> dict:
    """Names and layouts of T5X: heads flattened, matrices `[in, out]`, biases with the heads in front."""
    theirs = {"q": "query", "k": "key", "v": "value", "o": "out", "gate": "wi_0", "down": "wo"}

    def matrix(name, kernel):
        flat = kernel.reshape(kernel.shape[0], -1) if name == "o" else kernel.reshape(-1, kernel.shape[-1])
        return {"kernel": np.ascontiguousarray(flat.T)}

    def part(weights):
        names = theirs | {"up": "wi_1" if "gate" in weights else "wi"}
        return {names[name]: matrix(name, each["kernel"]) for name, each in weights.items()}

    tree: dict = {"token_embedder": {"embedding": params["embed"]["embedding"]}}
    for stack in ("encoder", "decoder"):
        own = "self_attention" if stack == "decoder" else "attention"
        names = {"attn": own, "cross": "encoder_decoder_attention", "mlp": "mlp"}
        norms = {"attn": own, "cross": "cross_attention", "mlp": "mlp"}
        tree[stack] = {
            f"{stack}_norm": params[f"{stack}_norm"],
            "relpos_bias": {"rel_embedding": np.ascontiguousarray(params[f"{stack}_bias"].T)},
        }
        for i, layer in params[stack].items():
            present = [each for each in names if each in layer]
            tree[stack][f"layers_{i}"] = {names[each]: part(layer[each]) for each in present} | {
                f"pre_{norms[each]}_layer_norm": layer[f"{each}_norm"] for each in present
            }
    if "head" in params:
        tree["decoder"]["logits_dense"] = matrix("head", params["head"]["kernel"])
    return tree
