"""Small whole models that the fuzzing starts from: their files name every field that published ones name."""

import io
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import sentencepiece
import tiny
from safetensors.numpy import save_file
from sentencepiece import sentencepiece_model_pb2

from cascades import checkpoints
from cascades.checkpoints import names, t5
from cascades.checkpoints.huggingface_configs import from_huggingface
from cascades.models import T5Config

PIECES = 300
SENTENCES = ["the quick brown fox jumps over the lazy dog", "a small model drafts and a large one verifies 12 + 3"] * 9
# What every published config.json says and no number hangs on.
_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.3",
    "use_cache": True,
}
_SIZES: dict[str, Any] = {
    "vocab_size": PIECES,
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 320,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
}
_GEMMA = _COMMON | _SIZES | {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False, "pad_token_id": 0}
_GEMMA3 = _GEMMA | {
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "query_pre_attn_scalar": 16,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 6,
    "sliding_window_pattern": 6,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _COMMON
    | _SIZES
    | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "hidden_act": "silu",
        "mlp_bias": False,
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 80,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": False,
    },
    "qwen2": _COMMON
    | _SIZES
    | {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
        "max_window_layers": 1,
        "sliding_window": 8,
        "use_sliding_window": True,
        "tie_word_embeddings": True,
    },
    "gemma": _GEMMA | {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "hidden_act": "gelu"},
    "gemma2": _GEMMA
    | {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "cache_implementation": "hybrid",
        "hidden_act": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 16,
        "sliding_window": 6,
    },
    "gemma3_text": _GEMMA3 | {"architectures": ["Gemma3ForCausalLM"]},
    "gemma3": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "model_type": "gemma3",
        "boi_token_index": 255999,
        "eoi_token_index": 256000,
        "eos_token_id": [1, 106],
        "image_token_index": 262144,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 256,
        "text_config": _GEMMA3,
        "torch_dtype": "bfloat16",
        "transformers_version": "4.50.0.dev0",
        "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"},
    },
    "t5": {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "d_ff": 48,
        "d_kv": 16,
        "d_model": 32,
        "decoder_start_token_id": 0,
        "dropout_rate": 0.1,
        "eos_token_id": 1,
        "feed_forward_proj": "gated-gelu",
        "initializer_factor": 1.0,
        "is_encoder_decoder": True,
        "layer_norm_epsilon": 1e-06,
        "n_positions": 512,
        "num_decoder_layers": 2,
        "num_heads": 2,
        "num_layers": 2,
        "output_past": True,
        "pad_token_id": 0,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.23.1",
        "use_cache": True,
        "vocab_size": PIECES + 100,
    },
}


def write(folder: Path) -> None:
    """Writes a folder of Hugging Face's for every entry of `CONFIGS`, `llama.gguf`, `gemma3.gguf`, and `ours`."""
    tokenizer = tiny.train(tiny.CORPUS)
    for family, raw in CONFIGS.items():
        target = folder / family
        target.mkdir()
        (target / "config.json").write_text(json.dumps(raw))
        _weights(target, raw, shards=2 if family == "llama" else 1)
        if family == "t5":
            (target / "spiece.model").write_bytes(sentences(pad_id=0, eos_id=1, unk_id=2, bos_id=-1))
        elif family.startswith("gemma"):
            (target / "tokenizer.model").write_bytes(sentences())
        else:
            tokenizer.save(str(target / "tokenizer.json"))
        for name, content in _beside(family).items():
            text = content if isinstance(content, str) else json.dumps(content)
            (target / name).write_text(text, encoding="utf-8")
    tiny.write_gguf(folder / "llama.gguf", tiny.weights(), tokenizer, tiny.CHATML)
    gemma_gguf(folder / "gemma3.gguf")
    checkpoints.convert(folder / "llama.gguf", folder / "ours", progress=False)


def sentences(**options: Any) -> bytes:
    """A SentencePiece model of `PIECES` pieces, Gemma's special ones by default."""
    target = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": "bpe",
        "vocab_size": PIECES,
        "byte_fallback": True,
        "pad_id": 0,
        "eos_id": 1,
        "bos_id": 2,
        "unk_id": 3,
        "eos_piece": "</s>" if options else "<eos>",
        "bos_piece": "<s>" if options else "<bos>",
        "minloglevel": 3,
        "normalization_rule_name": "nmt_nfkc" if options else "identity",
        "user_defined_symbols": [] if options else ["<start_of_turn>", "<end_of_turn>"],
    }
    iterator = iter(SENTENCES)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iterator, model_writer=target, **(settings | options))
    return target.getvalue()


def _weights(folder: Path, raw: dict[str, Any], shards: int) -> None:
    config = from_huggingface(raw, "base")
    table = t5.huggingface(config) if isinstance(config, T5Config) else names.huggingface(config, ())
    random = np.random.default_rng(0)
    tensors = {each.name: random.normal(0, 0.1, each.shape).astype(np.float32) for each in table.values()}
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)] if shards > 1 else []
    placed = {name: files[i % shards] if files else "model.safetensors" for i, name in enumerate(tensors)}
    for file in set(placed.values()):
        save_file({name: tensors[name] for name in tensors if placed[name] == file}, folder / file)
    if files:
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": placed}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _beside(family: str) -> dict[str, Any]:
    """The small files beside the weights."""
    if family == "t5" or family.startswith("gemma"):
        return {"generation_config.json": {"eos_token_id": 1, "pad_token_id": 0}}
    added = {
        str(i): {"content": name, "lstrip": False, "normalized": False, "rstrip": False, "special": True}
        | {"single_word": False}
        for i, name in enumerate(tiny.SPECIALS)
    }
    configuration = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
        "bos_token": None,
        "chat_template": tiny.CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 320,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    return {
        "tokenizer_config.json": configuration,
        "special_tokens_map.json": {
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"],
            "eos_token": {"content": "<|im_end|>", "lstrip": False, "normalized": False, "single_word": False},
            "pad_token": "<|endoftext|>",
        },
        "added_tokens.json": {name: i for i, name in enumerate(tiny.SPECIALS)},
        "generation_config.json": {"bos_token_id": 1, "do_sample": True, "eos_token_id": [2, 0], "temperature": 0.7},
        "chat_template.jinja": tiny.CHATML,
    }


def gemma_gguf(path: Path) -> None:
    """Writes a Gemma 3 with its SentencePiece tokenizer as llama.cpp's converter does."""
    config = from_huggingface(CONFIGS["gemma3_text"], "base")
    proto: Any = sentencepiece_model_pb2
    pieces = proto.ModelProto.FromString(sentences()).pieces
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_name("tiny")
    writer.add_file_type(0)
    writer.add_block_count(config.num_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_feed_forward_length(config.d_ff)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)
    writer.add_sliding_window(config.window)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([piece.piece for piece in pieces])
    writer.add_token_scores([piece.score for piece in pieces])
    writer.add_token_types([int(piece.type) for piece in pieces])
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    random = np.random.default_rng(0)
    for tensor in names.gguf(config, interleaved=False).values():
        writer.add_tensor(tensor.name, random.normal(0, 0.1, tensor.shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
