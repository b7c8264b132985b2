"""Random models of every family, and their tensors under the names and in the layouts of every format."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from cascades.models import DecoderConfig, RopeScaling, decoder

_SIZES = {
    "vocab_size": 48,
    "num_layers": 2,
    "d_model": 64,
    "d_ff": 96,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 32,
    "context_length": 40,
}
_GEMMA = {"activation": "gelu_tanh", "embed_scale": True}
_GEMMA3 = _GEMMA | {"post_norms": True, "qk_norm": True, "window": 6, "rope_theta": 1e6, "local_rope_theta": 1e4}

CONFIGS = {
    "llama": DecoderConfig(**_SIZES, rope_theta=5e5, norm_eps=1e-5, tied_head=False),
    "qwen2": DecoderConfig(**_SIZES, qkv_bias=True),
    "gemma": DecoderConfig(**_SIZES, **_GEMMA),
    "gemma2": DecoderConfig(
        **_SIZES,
        **_GEMMA,
        post_norms=True,
        window=6,
        local_layers=(True, False),
        attn_softcap=50.0,
        final_softcap=30.0,
    ),
    "gemma3": DecoderConfig(
        **(_SIZES | {"num_layers": 7}),
        **_GEMMA3,
        local_layers=(True, True, True, True, True, False, True),
        rope_scaling=RopeScaling(kind="linear", factor=8.0),
    ),
}


@dataclasses.dataclass(frozen=True)
class Model:
    """A family, its config and parameters that any format can hold exactly (multiples of 2**-7)."""

    family: str
    config: DecoderConfig
    params: dict


def make_model(family: str) -> Model:
    config = CONFIGS[family]
    leaves, tree = jax.tree.flatten(decoder(config).init(jax.random.key(0)))
    generator = np.random.default_rng(0)
    random = [jnp.asarray(generator.integers(-100, 100, leaf.shape) / 128, leaf.dtype) for leaf in leaves]
    return Model(family, config, jax.tree.unflatten(tree, random))


def gguf_tensors(model: Model) -> dict[str, np.ndarray]:
    """Names and layouts of llama.cpp, after convert_hf_to_gguf.py: its `permute` on q and k of llama models."""
    config, params = model.config, jax.tree.map(np.asarray, model.params)

    def permute(rows, heads):
        if model.family != "llama":
            return rows
        return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    tensors = {
        "token_embd.weight": params["embed"]["embedding"],
        "output_norm.weight": params["final_norm"]["scale"],
    }
    if not config.tied_head:
        tensors["output.weight"] = params["head"]["kernel"]
    norms = {
        "attn_norm": "attn_norm",
        "mlp_norm": "ffn_norm",
        "q_norm": "attn_q_norm",
        "k_norm": "attn_k_norm",
        "post_attn_norm": "post_attention_norm",
        "post_mlp_norm": "post_ffw_norm",
    }
    for i in range(config.num_layers):
        layer, at = params["layers"][str(i)], f"blk.{i}."
        for name, heads in (("q", config.num_heads), ("k", config.num_kv_heads), ("v", None)):
            for part, suffix in (("kernel", "weight"), ("bias", "bias")):
                if part in layer[name]:
                    value = layer[name][part]
                    value = value.reshape(-1, *value.shape[2:])
                    tensors[f"{at}attn_{name}.{suffix}"] = value if heads is None else permute(value, heads)
        tensors[f"{at}attn_output.weight"] = layer["o"]["kernel"].reshape(config.d_model, -1)
        for name in ("gate", "up", "down"):
            tensors[f"{at}ffn_{name}.weight"] = layer[name]["kernel"]
        for name, theirs in norms.items():
            if name in layer:
                tensors[f"{at}{theirs}.weight"] = layer[name]["scale"]
    return tensors


def huggingface_config(model: Model) -> dict:
    config = model.config
    raw = {
        "model_type": {"gemma3": "gemma3_text"}.get(model.family, model.family),
        "vocab_size": config.vocab_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_ff,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.context_length,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
        "sliding_window": config.window,
        "query_pre_attn_scalar": config.head_dim,
    }
    if config.rope_scaling is not None:
        raw["rope_scaling"] = {"rope_type": config.rope_scaling.kind, "factor": config.rope_scaling.factor}
    return raw


def huggingface_tensors(model: Model, prefix: str = "model.") -> dict[str, np.ndarray]:
    """Names and layouts of transformers: heads flattened, Gemma's norms without their 1."""
    config, params = model.config, jax.tree.map(np.asarray, model.params)
    offset = np.float32(1) if model.family.startswith("gemma") else np.float32(0)
    tensors = {
        f"{prefix}embed_tokens.weight": params["embed"]["embedding"],
        f"{prefix}norm.weight": params["final_norm"]["scale"] - offset,
    }
    if not config.tied_head:
        tensors["lm_head.weight"] = params["head"]["kernel"]
    norms = {"attn_norm": "input_layernorm", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm"}
    if config.post_norms:
        norms |= {"mlp_norm": "pre_feedforward_layernorm", "post_attn_norm": "post_attention_layernorm"}
        norms |= {"post_mlp_norm": "post_feedforward_layernorm"}
    else:
        norms |= {"mlp_norm": "post_attention_layernorm"}
    for i in range(config.num_layers):
        layer, at = params["layers"][str(i)], f"{prefix}layers.{i}."
        for name in "qkv":
            tensors[f"{at}self_attn.{name}_proj.weight"] = layer[name]["kernel"].reshape(-1, config.d_model)
            if "bias" in layer[name]:
                tensors[f"{at}self_attn.{name}_proj.bias"] = layer[name]["bias"].reshape(-1)
        tensors[f"{at}self_attn.o_proj.weight"] = layer["o"]["kernel"].reshape(config.d_model, -1)
        for name in ("gate", "up", "down"):
            tensors[f"{at}mlp.{name}_proj.weight"] = layer[name]["kernel"]
        for name, theirs in norms.items():
            if name in layer:
                tensors[f"{at}{theirs}.weight"] = layer[name]["scale"] - offset
    return tensors


def gemma_tree(model: Model, *, nested: bool, transposed: bool) -> dict:
    """gemma/gm/nn/_modules.py: `[N, D, H]` projections, both gates in one array, norms without their 1."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf), model.params)

    def bf16(x):
        return np.ascontiguousarray(x).astype(ml_dtypes.bfloat16)

    def norm(x):
        return {"scale": bf16(x["scale"] - 1)}

    flat = {
        "embedder": {"input_embedding": bf16(params["embed"]["embedding"])},
        "final_norm": norm(params["final_norm"]),
    }
    names = {"attn_norm": "pre_attention_norm", "mlp_norm": "pre_ffw_norm", "q_norm": "attn/_query_norm"}
    names |= {"k_norm": "attn/_key_norm", "post_attn_norm": "post_attention_norm", "post_mlp_norm": "post_ffw_norm"}
    for i in range(model.config.num_layers):
        layer, at = params["layers"][str(i)], f"layer_{i}/"
        q, k, v = (layer[name]["kernel"].swapaxes(1, 2) for name in "qkv")
        if model.config.num_heads == model.config.num_kv_heads:
            flat[f"{at}attn/qkv_einsum"] = {"w": bf16(np.stack([q, k, v]))}
        else:
            flat[f"{at}attn/q_einsum"] = {"w": bf16(q)}
            flat[f"{at}attn/kv_einsum"] = {"w": bf16(np.stack([k, v]))}
        flat[f"{at}attn/attn_vec_einsum"] = {"w": bf16(layer["o"]["kernel"].transpose(1, 2, 0))}
        gates = [layer[name]["kernel"] for name in ("gate", "up")]
        gating = bf16(np.stack(gates if transposed else [gate.T for gate in gates]))
        linear = bf16(layer["down"]["kernel"].T)
        flat[f"{at}mlp/gating_einsum"] = gating if nested else {"w": gating}
        flat[f"{at}mlp/linear"] = linear if nested else {"w": linear}
        for name, theirs in names.items():
            if name in layer:
                flat[f"{at}{theirs}"] = norm(layer[name])
    if not nested:
        return {f"transformer/{key}": value for key, value in flat.items()}
    tree: dict = {}
    for key, value in flat.items():
        *parents, last = key.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
