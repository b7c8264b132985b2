"""Writes real_<model>.json: prompts as token ids, and what transformers decodes greedily from them in float32.

    CASCADES_TEST_MODELS=<folder of GGUF files> SPEC_BENCH=<spec_bench.jsonl> python tests/golden/make_real_goldens.py

Needs torch, transformers and gguf, no jax. The models' shapes and names are written out here by hand, so that the
goldens share no code with the package's own readers.
"""

import json
import os
import pathlib

import gguf
import hf_models
import numpy as np
import torch
import transformers

NEW_TOKENS = 64
QUESTIONS = (85, 103, 111, 122, 125, 144, 152, 164, 322, 324)  # short ones of ten kinds
SHAPES = {
    "smollm2-135m": {
        "vocab_size": 49_152,
        "num_layers": 30,
        "d_model": 576,
        "d_ff": 1536,
        "num_heads": 9,
        "num_kv_heads": 3,
        "head_dim": 64,
        "context_length": 8192,
        "rope_theta": 100_000.0,
        "norm_eps": 1e-5,
    },
    "gemma3-270m": {
        "vocab_size": 262_144,
        "num_layers": 18,
        "d_model": 640,
        "d_ff": 2048,
        "num_heads": 4,
        "num_kv_heads": 1,
        "head_dim": 256,
        "context_length": 32_768,
        "rope_theta": 1_000_000.0,
        "local_rope_theta": 10_000.0,
        "window": 512,
        "local_layers": tuple(i not in (5, 11, 17) for i in range(18)),
        "activation": "gelu_tanh",
        "qk_norm": True,
        "post_norms": True,
        "embed_scale": True,
    },
    "qwen25-coder-0.5b": {
        "vocab_size": 151_936,
        "num_layers": 24,
        "d_model": 896,
        "d_ff": 4864,
        "num_heads": 14,
        "num_kv_heads": 2,
        "head_dim": 64,
        "context_length": 32_768,
        "rope_theta": 1_000_000.0,
        "qkv_bias": True,
        "tied_head": False,
    },
}
NORMS = {
    "attn_norm": "attn_norm",
    "mlp_norm": "ffn_norm",
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "post_attn_norm": "post_attention_norm",
    "post_mlp_norm": "post_ffw_norm",
}


def read_params(path: pathlib.Path, shape: dict, *, permuted: bool) -> dict:
    """The file's tensors, dequantised to float32, as our nested tree; every one of them is used."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    n, g, h, d = (shape[name] for name in ("num_heads", "num_kv_heads", "head_dim", "d_model"))

    def take(name):
        tensor = tensors.pop(name)
        weight = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        return weight.reshape([int(size) for size in reversed(tensor.shape)])

    def heads(weight, count):
        if permuted:  # the llama architecture's rows are interleaved in GGUF; transformers wants halves
            weight = weight.reshape(count, h // 2, 2, d).swapaxes(1, 2)
        return weight.reshape(count, h, d)

    layers = {}
    for i in range(shape["num_layers"]):
        prefix = f"blk.{i}."
        layer = {
            "q": {"kernel": heads(take(f"{prefix}attn_q.weight"), n)},
            "k": {"kernel": heads(take(f"{prefix}attn_k.weight"), g)},
            "v": {"kernel": take(f"{prefix}attn_v.weight").reshape(g, h, d)},
            "o": {"kernel": take(f"{prefix}attn_output.weight").reshape(d, n, h)},
        }
        for part, count in (("q", n), ("k", g), ("v", g)):
            if f"{prefix}attn_{part}.bias" in tensors:
                layer[part]["bias"] = take(f"{prefix}attn_{part}.bias").reshape(count, h)
        for part in ("gate", "up", "down"):
            layer[part] = {"kernel": take(f"{prefix}ffn_{part}.weight")}
        for ours, theirs in NORMS.items():
            if f"{prefix}{theirs}.weight" in tensors:
                layer[ours] = {"scale": take(f"{prefix}{theirs}.weight")}
        layers[str(i)] = layer
    params = {
        "embed": {"embedding": take("token_embd.weight")},
        "layers": layers,
        "final_norm": {"scale": take("output_norm.weight")},
    }
    if not shape.get("tied_head", True):
        params["head"] = {"kernel": take("output.weight")}
    assert not tensors, sorted(tensors)
    return params


def encode(tokenizer, text: str) -> list[int]:
    if tokenizer.chat_template:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
        )
    return tokenizer(text)["input_ids"]


@torch.no_grad()
def greedy(model, ids: list[int]) -> tuple[list[int], list[float]]:
    """The next tokens, whatever they are (no stop), and by how much each one's logit leads the second's."""
    out, margins, cache, fed = [], [], None, torch.tensor([ids])
    for _ in range(NEW_TOKENS):
        result = model(fed, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        best = torch.topk(result.logits[0, -1], 2)
        out.append(int(best.indices[0]))
        margins.append(float(f"{best.values[0] - best.values[1]:.4g}"))
        fed = best.indices[:1][None]
    return out, margins


def main():
    torch.set_num_threads(2)
    folder = pathlib.Path(os.environ["CASCADES_TEST_MODELS"])
    with open(os.environ["SPEC_BENCH"]) as file:
        questions = {row["question_id"]: row["turns"][0] for row in map(json.loads, file)}
    for name, shape in SHAPES.items():
        path = folder / f"{name}.gguf"
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, gguf_file=path.name)
        model = hf_models.build(shape, read_params(path, shape, permuted=name.startswith("smollm2")))
        rows = []
        for question in QUESTIONS:
            prompt = encode(tokenizer, questions[question])
            tokens, margins = greedy(model, prompt)
            rows.append({"question_id": question, "prompt": prompt, "tokens": tokens, "margins": margins})
            print(name, question, len(prompt), repr(tokenizer.decode(tokens[:24])), min(margins), flush=True)
        target = pathlib.Path(__file__).parent / f"real_{name}.json"
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        target.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
