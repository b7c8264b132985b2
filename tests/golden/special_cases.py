"""Small folders with tokenizers whose files must be read together; what transformers makes of them is golden.

Used by make_special_goldens.py (with transformers) and tests/tokenizers/test_special_tokens.py (without).
"""

import json

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

TEXTS = ["the fox", " <x> the<e>fox  <|b|> <|c|>", "<|a|>the", "the fox<|b|>", "<n>the <n> fox[PAD]", "the\nfox<foo>"]
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("f", "o"), ("fo", "x"), ("Ġ", "fox"), ("<", "|"), ("|", ">")]
SPECIALS = ("<|a|>", "<|b|>", "<|c|>")  # ids 0, 1, 2


def byte_level():
    """A byte-level BPE of 267 tokens whose three control tokens come first."""
    pieces = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in MERGES)]
    fast = tokenizers.Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, MERGES))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([tokenizers.AddedToken(piece, normalized=False, special=True) for piece in SPECIALS])
    return fast


def around(single):
    return processors.TemplateProcessing(
        single=single, special_tokens=[(name, index) for index, name in enumerate(SPECIALS)]
    )


def _added(content, **flags):
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False} | flags


FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
TRIM = processors.ByteLevel(trim_offsets=False)
# Name -> post-processor, and JSON files by name.
CASES = {
    "nothing": (None, {}),
    "bos": (around("<|a|> $A"), {"config": {"model_type": "llama", "bos_token_id": 0, "eos_token_id": 1}}),
    "bos_and_eos": (around("<|a|> $A <|b|>"), {}),
    "two_before_two_behind": (around("<|a|> <|c|> $A <|b|> <|b|>"), {}),
    "eos_alone": (around("$A <|b|>"), {"tokenizer_config": FAST | {"eos_token": "<|b|>"}}),
    "byte_level": (TRIM, {}),
    "sequence": (processors.Sequence([TRIM, around("<|c|> $A")]), {"tokenizer_config": FAST}),
    "sequence_other_order": (processors.Sequence([around("<|a|> $A <|b|>"), TRIM]), {}),
    "bert": (processors.BertProcessing(("<|b|>", 1), ("<|a|>", 0)), {}),
    "roberta": (processors.RobertaProcessing(("<|b|>", 1), ("<|c|>", 2), trim_offsets=True), {}),
    "flag_without_processor": (None, {"tokenizer_config": FAST | {"bos_token": "<|a|>", "add_bos_token": True}}),
    "flag_against_processor": (
        around("<|a|> $A"),
        {"tokenizer_config": FAST | {"bos_token": "<|a|>", "add_bos_token": False, "add_eos_token": True}},
    ),
    "llama_class": (
        around("<|a|> $A"),
        {"tokenizer_config": {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<|a|>", "add_bos_token": False}},
    ),
    "other_bos_by_name": (around("<|a|> $A"), {"tokenizer_config": FAST | {"bos_token": "<|c|>"}}),
    "names_in_the_config": (
        None,
        {"tokenizer_config": FAST | {"pad_token": "[PAD]", "foo_token": "<foo>", "additional_special_tokens": ["<x>"]}},
    ),
    "a_word_is_made_special": (None, {"tokenizer_config": FAST | {"eos_token": "the"}}),
    "extra_special_tokens": (None, {"tokenizer_config": FAST | {"extra_special_tokens": {"image_token": "<x>"}}}),
    "extra_list": (None, {"tokenizer_config": FAST | {"extra_special_tokens": ["<x>", "<foo>"], "eos_token": "<e>"}}),
    "added_tokens": (
        None,
        {"tokenizer_config": FAST | {"eos_token": "<e>"}, "added_tokens": {"<e>": 267, "<n>": 268, "<x>": 269}},
    ),
    "decoder": (
        None,
        {
            "tokenizer_config": FAST
            | {"added_tokens_decoder": {"267": _added("<e>", special=True), "268": _added("<n>", special=False)}}
        },
    ),
    "decoder_strips": (
        around("<|a|> $A"),
        {
            "tokenizer_config": FAST
            | {
                "added_tokens_decoder": {
                    "1": _added("<|b|>", special=True, lstrip=True),
                    "2": _added("<|c|>", special=True, rstrip=True),
                    "267": _added("<x>", special=True, lstrip=True, rstrip=True),
                    "268": _added("<n>", special=False, single_word=True),
                }
            }
        },
    ),
    "decoder_unflags": (None, {"tokenizer_config": FAST | {"added_tokens_decoder": {"2": _added("<|c|>")}}}),
    "map_counts_before_config": (
        None,
        {"tokenizer_config": FAST | {"bos_token": "<|b|>"}, "special_tokens_map": {"bos_token": "<|a|>"}},
    ),
    "map_is_not_read_beside_a_decoder": (
        None,
        {
            "tokenizer_config": FAST
            | {"bos_token": "<|b|>", "added_tokens_decoder": {"267": _added("<e>", special=True)}},
            "special_tokens_map": {"bos_token": "<|a|>", "eos_token": "<foo>"},
        },
    ),
    "map_of_objects": (
        None,
        {"special_tokens_map": {"eos_token": _added("<x>"), "additional_special_tokens": ["<foo>"]}},
    ),
}


def write(directory, name):
    """Writes the folder of a case."""
    processor, files = CASES[name]
    fast = byte_level()
    if processor is not None:
        fast.post_processor = processor
    directory.mkdir(parents=True)
    fast.save(str(directory / "tokenizer.json"))
    for file, content in ({"config": {"model_type": "llama"}} | files).items():
        (directory / f"{file}.json").write_text(json.dumps(content))
    return directory
