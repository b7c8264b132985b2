"""The JSON files beside a tokenizer: every field is read, without meaning, or refused by its name."""

import json
import shutil

import pytest
import tokenizers as library
from tokenizers import models, normalizers, pre_tokenizers, processors

from cascades import tokenizers
from cascades.errors import UserError
from cascades.tokenizers import files

# What published folders of the supported families say besides their special tokens.
PUBLISHED = {
    "llama2": {
        "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False, "legacy": False,
        "model_max_length": 10**30, "padding_side": "right", "sp_model_kwargs": {}, "tokenizer_class": "LlamaTokenizer",
        "pad_token": None, "use_default_system_prompt": False, "add_prefix_space": None,
        "spaces_between_special_tokens": False,
    },
    "llama3": {
        "clean_up_tokenization_spaces": True, "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072, "tokenizer_class": "PreTrainedTokenizerFast",
    },
    "qwen2": {
        "add_bos_token": False, "add_prefix_space": False, "additional_special_tokens": [], "bos_token": None,
        "clean_up_tokenization_spaces": False, "errors": "replace", "model_max_length": 32768,
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    },
    "gemma3": {
        "boi_token": "<|im_start|>", "image_token": "<|im_end|>", "processor_class": "Gemma3Processor",
        "sp_model_kwargs": None, "extra_special_tokens": {"eoi_token": "<|im_end|>"}, "legacy": None,
        "tokenizer_class": "GemmaTokenizer", "use_default_system_prompt": False, "padding_side": "left",
    },
    "t5": {
        "extra_ids": 100, "special_tokens_map_file": None, "name_or_path": "t5-small", "tokenizer_class": "T5Tokenizer",
        "sp_model_kwargs": {}, "tokenizer_file": "/x", "additional_special_tokens": [], "max_length": 512, "stride": 0,
        "truncation_side": "right", "truncation_strategy": "longest_first", "pad_to_multiple_of": None,
        "pad_token_type_id": 0,
    },
    "transformers5": {"backend": "tokenizers", "is_local": True, "local_files_only": False, "response_template": "x"},
    "unknown_but_empty": {"a": None, "b": False, "c": [], "d": {}, "e": ""},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_folders_say_is_known(hf_directory, name):
    assert tokenizers.load(hf_directory(tokenizer_config=PUBLISHED[name])).split("fox", True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("split_special_tokens", True),
        ("do_lower_case", True),
        ("errors", "ignore"),
        ("sp_model_kwargs", {"enable_sampling": True}),
        ("sp_model_kwargs", [1]),
        ("auto_map", {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}),
        ("fix_mistral_regex", True),
        ("fast_tokenizer_files", ["tokenizer.json", "tokenizer.4.0.0.json"]),
        ("keep_accents", True),
        ("a_field_of_tomorrow", 3),
    ],
)
def test_a_field_that_may_change_tokens_is_refused_by_name(hf_directory, field, value):
    with pytest.raises(UserError, match=f"tokenizer_config.json sets '{field}' to .*which is not followed"):
        tokenizers.load(hf_directory(tokenizer_config={field: value}))
    with pytest.raises(UserError, match="special_tokens_map.json sets 'odd' to 1"):
        tokenizers.load(hf_directory(tokenizer_config={}, special_tokens_map={"odd": 1}))


ODD = [3, -1, 1.5, float("nan"), True, "x", ["x"], [[]], {"a": 1}, [None]]
WRONG = {  # the file, the field, what it may be of ODD, and how it is said
    "add_bos": ("tokenizer_config", "add_bos_token", [True], "true or false as add_bos_token"),
    "add_eos": ("tokenizer_config", "add_eos_token", [True], "true or false as add_eos_token"),
    "legacy": ("tokenizer_config", "legacy", [True], "true or false as legacy"),
    "extra_ids": ("tokenizer_config", "extra_ids", [3], "a whole number as extra_ids"),
    "class": ("tokenizer_config", "tokenizer_class", ["x"], "a name as tokenizer_class"),
    "eos": ("generation_config", "eos_token_id", [3, -1], "the id of a token or a list of them as eos_token_id"),
    "eos_of_the_model": ("config", "eos_token_id", [3, -1], "the id of a token or a list of them as eos_token_id"),
    "bos_of_the_model": ("config", "bos_token_id", [3, -1], "the id of a token or a list of them as bos_token_id"),
    "size": ("config", "vocab_size", [3], "a whole number as vocab_size"),
    "type": ("config", "model_type", ["x"], "a name as model_type"),
    "added": ("added_tokens", "<x>", [], "as <x>"),
    "named": ("tokenizer_config", "foo_token", ["x", True], "a token with its content as foo_token"),
    "listed": ("tokenizer_config", "additional_special_tokens", [["x"], {"a": 1}], "as additional_special_tokens"),
    "decoder": ("tokenizer_config", "added_tokens_decoder", [], "as added_tokens_decoder"),
    "map": ("special_tokens_map", "bos_token", ["x", True], "a token with its content as bos_token"),
    "more": ("tokenizer_config", "model_specific_special_tokens", [], "model_specific_special_tokens"),
}


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("name", WRONG)
def test_a_field_of_the_wrong_kind_is_named(hf_directory, name, value):
    file, field, allowed, said = WRONG[name]
    if any(type(value) is type(each) and value == each for each in allowed):
        return
    if (name, value) == ("more", {"a": 1}):
        said = "a token with its content as a"
    if (name, value) == ("added", 3):
        said = "give the id 3 to the token '<x>'"
    directory = hf_directory(**{file: {field: value}})
    with pytest.raises(UserError, match=said) as caught:
        tokenizers.load(directory)
    assert file in str(caught.value) or "beside" in str(caught.value)


@pytest.mark.parametrize(
    "token",
    [
        None,
        3,
        "x",
        {},
        {"content": 3},
        {"content": "\ud800"},
        {"content": "x", "lstrip": 1},
        {"content": "x", "odd": 1},
    ],
    ids=repr,
)
def test_a_described_token_has_a_content_and_flags(hf_directory, token):
    with pytest.raises(UserError, match=r"tokenizer_config.json should give .* as added_tokens_decoder"):
        tokenizers.load(hf_directory(tokenizer_config={"added_tokens_decoder": {"0": token}}))


@pytest.mark.parametrize("key", ["x", "-1", "1.5", "", "²", "9" * 30])
def test_a_described_token_has_a_number(hf_directory, key):
    with pytest.raises(UserError, match="should give ids of tokens as names as added_tokens_decoder"):
        tokenizers.load(hf_directory(tokenizer_config={"added_tokens_decoder": {key: {"content": "x"}}}))


@pytest.mark.parametrize("text", ["{", "", "nul", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "3", '"x"'])
@pytest.mark.parametrize(
    "name", ["tokenizer_config", "special_tokens_map", "added_tokens", "generation_config", "config"]
)
def test_a_file_that_is_no_object_is_named(hf_directory, name, text):
    directory = hf_directory()
    (directory / f"{name}.json").write_text(text)
    with pytest.raises(UserError, match=rf"{name}.json should (be JSON|hold a JSON object)"):
        tokenizers.load(directory)


@pytest.mark.parametrize("index", [399, 402, 10**8])
def test_an_added_token_has_the_next_id(hf_directory, index):
    directory = hf_directory()
    size = tokenizers.load(directory).vocab_size
    (directory / "added_tokens.json").write_text(json.dumps({"<x>": size}))
    assert tokenizers.load(directory).encode("<x>") == [size]
    (directory / "added_tokens.json").write_text(json.dumps({"<x>": index}))
    with pytest.raises(UserError, match=f"give the id {index} to the token '<x>', but there it is {size}"):
        tokenizers.load(directory)


@pytest.mark.parametrize(
    ("where", "ids", "kept", "left"),
    [
        ("generation_config", [2, 100_000], (0, 2), "100000"),
        ("config", 5000, (0, 2), "5000"),
        ("config", [1, 7000, 5000], (0, 1, 2), "7000, 5000|5000, 7000"),
        ("generation_config", [2, -1], (0, 2), None),
        ("config", None, (0, 2), None),
    ],
)
def test_an_end_behind_the_vocabulary_is_left_out_and_said(hf_directory, where, ids, kept, left):
    tokenizer = tokenizers.load(hf_directory(**{where: {"eos_token_id": ids}}))
    assert tokenizer.eos_ids == kept
    assert bool(tokenizer.remarks) == bool(left)
    if left:
        assert any(text in tokenizer.remarks[0] for text in left.split("|"))


@pytest.mark.parametrize("name", ["<|eom_id|>", "<|eot_id|>", "<|end|>", "<|end_of_turn|>"])
def test_ends_of_a_turn_that_no_file_declares(hf_directory, name):
    tokenizer = tokenizers.load(hf_directory(tokenizer_config={"additional_special_tokens": [name]}))
    assert tokenizer.encode(name)[0] in tokenizer.eos_ids
    plain = {"added_tokens_decoder": {str(tokenizer.vocab_size - 1): {"content": name, "special": False}}}
    tokenizer = tokenizers.load(hf_directory(tokenizer_config=plain))
    assert tokenizer.encode(name)[0] not in tokenizer.eos_ids  # it prints, so it is a word like others


def test_the_text_model_of_a_multimodal_one_is_asked(hf_directory):
    config = {"text_config": {"eos_token_id": [1, 7], "vocab_size": 500}}
    assert tokenizers.load(hf_directory(config=config)).eos_ids == (0, 1, 2, 7)
    assert files.read(hf_directory(config=config)).vocab_size == 500


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tomorrow", {"a": 1}, "sets 'tomorrow', which is not known"),
        ("dropout", 0.1, "sets 'model.dropout' to 0.1"),
        ("end_of_word_suffix", "</w>", "sets 'model.end_of_word_suffix' to '</w>'"),
        ("continuing_subword_prefix", "##", "'model.continuing_subword_prefix'"),
        ("decoder", {"type": "Strip", "content": " ", "start": 1, "stop": 0}, "its decoder is Strip"),
        ("decoder", {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, "its decoder is Replace"),
        (
            "decoder",
            {"type": "CTC", "pad_token": "x", "word_delimiter_token": "|", "cleanup": True},
            "its decoder is CTC",
        ),
        ("decoder", {"type": "Metaspace", "replacement": "_", "prepend_scheme": "first"}, "its decoder is Metaspace"),
    ],
)
def test_a_field_of_tokenizer_json_that_is_not_followed(hf_directory, field, value, said):
    directory = hf_directory()
    content = json.loads((directory / "tokenizer.json").read_text())
    (content["model"] if f"model.{field}" in said else content)[field] = value
    (directory / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        tokenizers.load(directory)


def test_a_prefix_space_that_the_files_do_not_agree_on(hf_directory):
    with pytest.raises(UserError, match=r"asks for a space before a text \(add_prefix_space\).* puts none"):
        tokenizers.load(hf_directory(tokenizer_config={"add_prefix_space": True}))
    directory = hf_directory(tokenizer_config={"add_prefix_space": False})
    fast = library.Tokenizer.from_file(str(directory / "tokenizer.json"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(), pre_tokenizers.ByteLevel(add_prefix_space=True)]
    )
    fast.save(str(directory / "tokenizer.json"))
    with pytest.raises(UserError, match=r"asks for no space before a text \(add_prefix_space\).* puts one"):
        tokenizers.load(directory)


@pytest.mark.parametrize("single", ["$A <|im_end|> $A", "<|im_end|> $A:1 <|im_end|> $A <|im_end|>"])
def test_a_post_processor_that_is_more_than_a_frame_is_refused(hf_directory, single):
    directory = hf_directory()
    fast = library.Tokenizer.from_file(str(directory / "tokenizer.json"))
    fast.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<|im_end|>", 2)])
    fast.save(str(directory / "tokenizer.json"))
    with pytest.raises(UserError, match="should put special tokens around a text and leave it as it is"):
        tokenizers.load(directory)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda processor: processor.update(special_tokens={}), "should give ids of"),
        (lambda processor: processor["special_tokens"]["<|im_end|>"].update(ids=[9999]), "puts the token 9999 around"),
    ],
)
def test_a_post_processor_of_another_vocabulary_is_refused(hf_directory, change, said):
    directory = hf_directory()
    fast = library.Tokenizer.from_file(str(directory / "tokenizer.json"))
    fast.post_processor = processors.TemplateProcessing(single="<|im_end|> $A", special_tokens=[("<|im_end|>", 2)])
    content = json.loads(fast.to_str())
    change(content["post_processor"])
    (directory / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=said):
        tokenizers.load(directory)


def test_an_id_far_behind_the_others_takes_no_memory(tmp_path):
    content = json.loads(library.Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str())
    content["model"]["vocab"]["b"] = 4_000_000_000
    content["decoder"] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="should number its 2 tokens from 0, but has an id 4000000000"):
        tokenizers.load(tmp_path)


# vocab.json and merges.txt.


@pytest.fixture
def two_files(fast, tmp_path):
    """Returns a function that writes `fast` without its control tokens as vocab.json and merges.txt."""

    def write(**config):
        model = json.loads(fast.to_str())["model"]
        shutil.rmtree(tmp_path / "two", ignore_errors=True)
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = "\n".join(" ".join(pair) for pair in model["merges"])
        (tmp_path / "two" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
        (tmp_path / "two" / "tokenizer_config.json").write_text(json.dumps(config))
        return tmp_path / "two"

    return write


def test_two_files_read_as_their_class_reads_them(two_files, fast):
    tokenizer = tokenizers.load(two_files(tokenizer_class="GPT2Tokenizer", eos_token="<|endoftext|>"))
    for text in ("the quick fox 12345", "naïve 😀\n\n", "<|endoftext|>x"):
        assert tokenizer.encode(text) == fast.encode(text).ids
    qwen = tokenizers.load(two_files(tokenizer_class="Qwen2TokenizerFast", eos_token="<|endoftext|>"))
    reference = library.Tokenizer.from_str(fast.to_str())
    reference.normalizer = normalizers.NFC()
    assert qwen.encode("e\u0301") == reference.encode("é").ids and qwen.eos_ids == (0,)
    with_bos = tokenizers.load(two_files(tokenizer_class="GPT2Tokenizer", bos_token="<|im_start|>", add_bos_token=True))
    assert with_bos.encode("fox") == [1, *fast.encode("fox").ids]


@pytest.mark.parametrize("config", [{}, {"tokenizer_class": "BloomTokenizer"}, {"tokenizer_class": "LlamaTokenizer"}])
def test_two_files_of_another_class_are_refused(two_files, config):
    with pytest.raises(UserError, match="are read for Qwen2Tokenizer and GPT2Tokenizer"):
        tokenizers.load(two_files(**config))
    with pytest.raises(UserError, match="without add_prefix_space"):
        tokenizers.load(two_files(tokenizer_class="GPT2Tokenizer", add_prefix_space=True))


@pytest.mark.parametrize("vocab", [{"a": 0, "b": 2}, {"a": 0, "b": 0}, {"a": "0"}, {"a": None}, {"a": True}, {"a": -1}])
def test_pieces_that_are_not_numbered_are_refused(two_files, vocab):
    directory = two_files(tokenizer_class="GPT2Tokenizer")
    (directory / "vocab.json").write_text(json.dumps(vocab))
    with pytest.raises(UserError, match="vocab.json should number its pieces from 0, each once"):
        tokenizers.load(directory)
    directory = two_files(tokenizer_class="GPT2Tokenizer")
    (directory / "merges.txt").write_text("no piece\n")
    with pytest.raises(UserError, match="merges should be built of its pieces"):
        tokenizers.load(directory)
