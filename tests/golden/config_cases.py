"""Tiny models of Hugging Face whose `config.json` uses a switch that changes the text, and their files. numpy only.

Shared by the script that makes the goldens (torch and transformers, no jax) and the tests that read them.
"""

import json
import pathlib

import numpy as np

_SIZES = {
    "vocab_size": 61,
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
}
_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False} | _SIZES
_QWEN2 = {"model_type": "qwen2", "tie_word_embeddings": True} | _SIZES
_GEMMA = {"model_type": "gemma"} | _SIZES
_GEMMA2 = {"model_type": "gemma2", "sliding_window": 5, "query_pre_attn_scalar": 24} | _SIZES
_GEMMA3 = {"model_type": "gemma3_text", "sliding_window": 5, "query_pre_attn_scalar": 24} | _SIZES
_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3"}

CASES: dict[str, dict] = {
    "relu": _LLAMA | {"hidden_act": "relu"},
    "gelu": _LLAMA | {"hidden_act": "gelu"},
    "old_gemma": _GEMMA | {"hidden_act": "gelu", "hidden_activation": None},
    "llama3_without_original": _LLAMA | {"rope_scaling": _LLAMA3, "rope_theta": 500.0},
    "both_spellings": _LLAMA
    | {
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0},
        "rope_scaling": {"type": "linear", "factor": 4.0},
        "rope_theta": 500.0,
    },
    "qwen2_slides": _QWEN2 | {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen2_does_not_slide": _QWEN2 | {"use_sliding_window": False, "sliding_window": 5, "max_window_layers": 1},
    "gemma2_without_caps": _GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "gemma2_caps": _GEMMA2 | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "hidden_act": "gelu"},
    "gemma3_of_4": _GEMMA3
    | {
        "sliding_window_pattern": 2,
        "rope_theta": 900.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "final_logit_softcapping": 3.0,
    },
    "gemma3_of_5": _GEMMA3
    | {
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 900.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "fp8_bare": _LLAMA,
    "fp8_blocks": _LLAMA | {"quantization_config": _FP8 | {"weight_block_size": [16, 16]}},
    "fp8_whole": _LLAMA | {"quantization_config": _FP8 | {"weight_block_size": None}},
}
SEEDS = {name: 500 + i for i, name in enumerate(CASES)}
LENGTH, KEPT = 24, 8  # tokens, and of the logits those of the last

_NAMES = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "F8_E4M3"}


def make_tokens(name: str) -> np.ndarray:
    """int32 `[1, LENGTH]`."""
    return np.random.RandomState(SEEDS[name] + 1000).randint(0, _SIZES["vocab_size"], (1, LENGTH)).astype(np.int32)


def make_tensors(name: str) -> dict[str, np.ndarray]:
    """transformers' names; float32, and uint8 for the bits of FP8 numbers."""
    raw, random = CASES[name], np.random.RandomState(SEEDS[name])
    d, f, h = raw["hidden_size"], raw["intermediate_size"], raw["head_dim"]
    n, g = raw["num_attention_heads"] * h, raw["num_key_value_heads"] * h
    kind = raw["model_type"]

    def normal(*shape, std, mean=0.0):
        return (mean + std * random.standard_normal(shape)).astype(np.float32)

    def norm(width=d):
        return normal(width, std=0.3, mean=0.0 if kind.startswith("gemma") else 1.0)

    tensors = {"model.embed_tokens.weight": normal(61, d, std=0.5), "model.norm.weight": norm()}
    if kind == "llama":
        tensors["lm_head.weight"] = normal(61, d, std=0.5)
    matrices = {"self_attn.q": (n, d), "self_attn.k": (g, d), "self_attn.v": (g, d), "self_attn.o": (d, n)}
    matrices |= {"mlp.gate": (f, d), "mlp.up": (f, d), "mlp.down": (d, f)}
    norms = ["input_layernorm", "post_attention_layernorm"]
    if kind in ("gemma2", "gemma3_text"):
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    for i in range(raw["num_hidden_layers"]):
        at = f"model.layers.{i}."
        for part, shape in matrices.items():
            weight = f"{at}{part}_proj.weight"
            if name.startswith("fp8"):
                tensors |= _float8(name, weight, shape, random)
            else:
                tensors[weight] = normal(*shape, std=1.5 * shape[1] ** -0.5)
            if kind == "qwen2" and part in ("self_attn.q", "self_attn.k", "self_attn.v"):
                tensors[f"{at}{part}_proj.bias"] = normal(shape[0], std=0.5)
        tensors |= {f"{at}{each}.weight": norm() for each in norms}
        if kind == "gemma3_text":
            tensors |= {f"{at}self_attn.{each}_norm.weight": norm(h) for each in "qk"}
    return tensors


def _float8(name: str, weight: str, shape: tuple[int, int], random: np.random.RandomState) -> dict[str, np.ndarray]:
    """Bits of e4m3 numbers below one, of either sign, and scales."""
    bits = (random.randint(0, 56, shape) + 128 * random.randint(0, 2, shape)).astype(np.uint8)
    if name == "fp8_bare":
        return {weight: bits}
    grid = [size // 16 for size in shape] if name == "fp8_blocks" else []
    scale = np.asarray(random.uniform(0.2, 1.5, grid)).astype(np.float32)
    return {weight: bits, f"{weight}_scale_inv": scale}


def write(directory: pathlib.Path, name: str) -> pathlib.Path:
    """Writes the case as a directory of Hugging Face: no library for safetensors knows FP8 in numpy."""
    tensors, header, offset = make_tensors(name), {}, 0
    for key, value in tensors.items():
        header[key] = {
            "dtype": _NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [offset, offset + value.nbytes],
        }
        offset += value.nbytes
    head = json.dumps({"__metadata__": {"format": "pt"}} | header).encode()
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(CASES[name]))
    body = b"".join(value.tobytes() for value in tensors.values())
    (directory / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + body)
    return directory
