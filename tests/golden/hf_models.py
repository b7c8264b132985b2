"""Our configs and parameter trees as transformers models. Runs where torch and transformers are installed."""

import numpy as np
import torch
import transformers


def family(config: dict) -> str:
    """Which of transformers' classes has the switches that this config uses."""
    if config.get("qk_norm"):
        return "gemma3"
    if config.get("post_norms"):
        return "gemma2"
    if config.get("embed_scale"):
        return "gemma"
    return "qwen2" if config.get("qkv_bias") else "llama"


def build(config: dict, params: dict):
    """Returns the transformers model, float32, eager attention (the one that knows soft caps)."""
    kind = family(config)
    hf_config, model_class = _shape(kind, config)
    model = model_class(hf_config)
    state = {name: torch.from_numpy(np.ascontiguousarray(w)) for name, w in _state_dict(kind, config, params)}
    missing, unexpected = model.load_state_dict(state, strict=False)
    if config.get("tied_head", True):
        model.tie_weights()
        missing = [name for name in missing if name != "lm_head.weight"]
    assert not missing and not unexpected, (missing, unexpected)
    return model.eval()


def _shape(kind: str, config: dict):
    rope = {"rope_type": "default", "rope_theta": config.get("rope_theta", 10_000.0)}
    if scaling := config.get("rope_scaling"):
        rope |= {"rope_type": scaling["kind"], "factor": scaling["factor"]}
        if scaling["kind"] == "llama3":
            rope |= {name: scaling[name] for name in ("low_freq_factor", "high_freq_factor")}
            rope["original_max_position_embeddings"] = scaling["original_context_length"]
    shape = {
        "vocab_size": config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": config["d_ff"],
        "num_hidden_layers": config["num_layers"],
        "num_attention_heads": config["num_heads"],
        "num_key_value_heads": config["num_kv_heads"],
        "head_dim": config["head_dim"],
        "max_position_embeddings": config["context_length"],
        "rms_norm_eps": config.get("norm_eps", 1e-6),
        "tie_word_embeddings": config.get("tied_head", True),
        "rope_parameters": rope,
        "attn_implementation": "eager",
    }
    classes = {
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
        "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM),
        "gemma2": (transformers.Gemma2Config, transformers.Gemma2ForCausalLM),
        "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
    }
    if kind in ("gemma2", "gemma3"):
        query_scale = config.get("query_scale") or config["head_dim"] ** -0.5
        names = {True: "sliding_attention", False: "full_attention"}
        shape |= {
            "query_pre_attn_scalar": round(query_scale**-2),
            "sliding_window": config["window"],
            "layer_types": [names[local] for local in config["local_layers"]],
            "attn_logit_softcapping": config.get("attn_softcap"),
            "final_logit_softcapping": config.get("final_softcap"),
        }
    if kind == "gemma3":
        local = {"rope_type": "default", "rope_theta": config["local_rope_theta"]}
        shape["rope_parameters"] = {"full_attention": rope, "sliding_attention": local}
    config_class, model_class = classes[kind]
    return config_class(**shape), model_class


def _state_dict(kind: str, config: dict, params: dict):
    def norm(scale):
        return scale - np.float32(1) if kind.startswith("gemma") else scale  # Gemma's classes store scale - 1

    d, v = config["d_model"], config["vocab_size"]
    yield "model.embed_tokens.weight", params["embed"]["embedding"]
    yield "model.norm.weight", norm(params["final_norm"]["scale"])
    if "head" in params:
        yield "lm_head.weight", params["head"]["kernel"].reshape(v, d)
    both = "post_norms" in config and config["post_norms"]
    norms = {
        "attn_norm": "input_layernorm",
        "mlp_norm": "pre_feedforward_layernorm" if both else "post_attention_layernorm",
        "post_attn_norm": "post_attention_layernorm",
        "post_mlp_norm": "post_feedforward_layernorm",
        "q_norm": "self_attn.q_norm",
        "k_norm": "self_attn.k_norm",
    }
    for i, layer in params["layers"].items():
        prefix = f"model.layers.{i}."
        for ours, theirs in norms.items():
            if ours in layer:
                yield f"{prefix}{theirs}.weight", norm(layer[ours]["scale"])
        for part in ("q", "k", "v"):
            yield f"{prefix}self_attn.{part}_proj.weight", layer[part]["kernel"].reshape(-1, d)
            if "bias" in layer[part]:
                yield f"{prefix}self_attn.{part}_proj.bias", layer[part]["bias"].reshape(-1)
        yield f"{prefix}self_attn.o_proj.weight", layer["o"]["kernel"].reshape(d, -1)
        for part in ("gate", "up", "down"):
            yield f"{prefix}mlp.{part}_proj.weight", layer[part]["kernel"]
