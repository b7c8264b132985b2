"""Every field of a Hugging Face `config.json`: read, known to be without meaning here, or refused by name.

transformers skips a field that a model's class does not name. Remote code, forks and other programs may read it, and it
may change the text. So a name that stands in none of these tables is refused, unless its value says nothing (null,
false, an empty list or object). Sources: transformers 4.30 to 5.24, `configuration_utils.py` and the families'
`configuration_*.py`; published files.
"""

from collections.abc import Mapping
from typing import Any

from cascades.errors import UserError

# Of the library and its tools: how weights are stored and computed with, who wrote the file, settings of other heads.
_LIBRARY = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _commit_hash
    _experts_implementation_internal _flash_attn_2_enabled _name_or_path _output_attentions attn_implementation
    base_model_ep_plan base_model_pp_plan base_model_tp_plan cache_implementation chunk_size_feed_forward
    classifier_bias classifier_dropout cross_attention_hidden_size dtype finetuning_task flash_attention
    gradient_checkpointing id2label is_decoder is_llama_config keys_to_ignore_at_inference label2id label_smoothing
    library_name license loss_type low_cpu_mem_usage model_max_length model_name model_type name_or_path num_labels
    output_attentions output_hidden_states output_past pipeline_parallel_size prefix pretraining_tp problem_type
    return_dict summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj tags
    task_specific_params tensor_parallel_size tf_legacy_loss tie_last_hidden_states tokenizer_class
    tokenizer_model_max_length tokenizer_padding_side torch_dtype torchscript transformers.js_config
    transformers_version unsloth_fixed unsloth_version use_bfloat16 use_cache use_flash_attention use_flash_attn
    use_gradient_checkpointing
"""
# For training only.
_TRAINING = """
    attention_dropout attention_probs_dropout_prob attn_pdrop dropout dropout_rate embd_pdrop hidden_dropout
    hidden_dropout_prob initializer_factor initializer_range layerdrop mlp_dropout neftune_noise_alpha resid_pdrop
    z_loss
"""
# Of generation, which the run decides, and of special tokens, which the tokenizer's readers look up.
_GENERATION = """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens bos_token_id
    decoder_start_token_id diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty eos_token_id epsilon_cutoff eta_cutoff exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id generation_config length_penalty max_length max_new_tokens max_seq_len
    max_seq_length max_sequence_length min_length min_p no_repeat_ngram_size num_assistant_tokens
    num_assistant_tokens_schedule num_beam_groups num_beams num_return_sequences output_scores pad_token_id
    penalty_alpha remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id seq_length
    suppress_tokens target_lookbehind temperature top_k top_p typical_p
"""
WITHOUT_MEANING = frozenset(f"{_LIBRARY} {_TRAINING} {_GENERATION}".split())

_DECODER = """
    architectures head_dim hidden_act hidden_activation hidden_size intermediate_size layer_types
    max_position_embeddings model_type num_attention_heads num_hidden_layers num_key_value_heads
    num_nextn_predict_layers quantization_config query_pre_attn_scalar rms_norm_eps rope_parameters rope_scaling
    rope_theta sliding_window tie_word_embeddings use_sliding_window vocab_size
"""
_CAPS = "attn_logit_softcapping final_logit_softcapping"
_T5 = """
    architectures d_ff d_kv d_model dense_act_fn feed_forward_proj is_gated_act layer_norm_epsilon model_type
    n_positions num_decoder_layers num_heads num_layers quantization_config relative_attention_max_distance
    relative_attention_num_buckets scale_decoder_outputs tie_word_embeddings vocab_size
"""
# The fields that `huggingface_configs` and `t5` read.
READ: dict[str, frozenset[str]] = {
    family: frozenset(names.split())
    for family, names in {
        "llama": f"{_DECODER} max_window_layers",
        "qwen2": f"{_DECODER} max_window_layers",
        "gemma": f"{_DECODER} max_window_layers",
        "gemma2": f"{_DECODER} {_CAPS} sliding_window_size",
        "gemma3": f"{_DECODER} {_CAPS} rope_local_base_freq sliding_window_pattern _sliding_window_pattern",
        "t5": _T5,
        "mt5": _T5,
    }.items()
}

# Fields of which the models here support only these values.
_LIBRARY_ONLY = {"add_cross_attention": (False,), "pruned_heads": ({},), "tie_encoder_decoder": (False,)}
_DECODER_ONLY = {
    "attention_bias": (False,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "mlp_bias": (False,),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
    **_LIBRARY_ONLY,
}
ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "llama": _DECODER_ONLY,
    # Biases on q, k and v are always there; one on the output matrix would be an unused tensor, which is refused.
    "qwen2": _DECODER_ONLY | {"attention_bias": (False, True), "qkv_bias": (True,)},
    "gemma": _DECODER_ONLY,
    "gemma2": _DECODER_ONLY | {"sliding_window_pattern": (2,), "_sliding_window_pattern": (2,)},
    "gemma3": _DECODER_ONLY,
    "t5": {"is_encoder_decoder": (True,), **_LIBRARY_ONLY},
}
ONLY["mt5"] = ONLY["t5"]

# Classes whose checkpoints hold a whole language model; others have heads for rewards, classes or embeddings.
ARCHITECTURES: dict[str, tuple[str, ...]] = {
    "llama": ("LlamaForCausalLM", "LLaMAForCausalLM"),
    "qwen2": ("Qwen2ForCausalLM",),
    "gemma": ("GemmaForCausalLM",),
    "gemma2": ("Gemma2ForCausalLM",),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"),
    "t5": ("T5ForConditionalGeneration", "T5WithLMHeadModel"),
    "mt5": ("MT5ForConditionalGeneration", "T5ForConditionalGeneration"),
}


def check(raw: Mapping[str, Any], family: str, label: str, at: str = "") -> None:
    """Compares the fields of a config, or of the object at the path `at` in it, with the tables.

    Raises:
      UserError: fields that are unknown and say something, or whose value no model here supports.
    """
    code = raw.get("auto_map")
    if code:
        raise UserError(
            f"{label} names code of its own ({at}auto_map), which is not run: delete that field if the model is "
            f"computed as a plain {family}, or give another."
        )
    _check_class(raw.get("architectures"), family, label, at)
    only = ONLY[family]
    refused, unknown = [], []
    for name, value in raw.items():
        if value is None or name in WITHOUT_MEANING or name in READ[family]:
            continue
        if name in only:
            if not any(_same(value, allowed) for allowed in only[name]):
                refused.append(f"{at}{name}")
        elif value is not False and value not in ([], {}):
            unknown.append(f"{at}{name}")
    if refused:
        raise UserError(f"{label} asks for {' and '.join(refused)}, which no model here has: give another model.")
    if unknown:
        shown = ", ".join(sorted(unknown)[:6]) + (f" and {len(unknown) - 6} more" if len(unknown) > 6 else "")
        raise UserError(
            f"{label} gives {shown}, which no {family} here knows and which may change what it computes: delete "
            "from the file what changes nothing, or give another model."
        )


def _check_class(classes: Any, family: str, label: str, at: str) -> None:
    if classes is None or classes == []:
        return
    if not isinstance(classes, list) or not all(isinstance(each, str) for each in classes):
        raise UserError(f"{label} should give {at}architectures as a list of names: correct the file.")
    names = [each.removeprefix("Flax").removeprefix("TF") for each in classes]
    if others := [each for each in names if each not in ARCHITECTURES[family]]:
        raise UserError(
            f"{label} holds a {', '.join(others)[:100]}, but only a {' or '.join(ARCHITECTURES[family])} can be read: "
            "give such a model."
        )


def _same(value: Any, allowed: Any) -> bool:
    """Equal, where 1 is not true."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)
