"""SentencePiece `.model` files in folders: the JSON files beside them count too."""

import json

import pytest
import sentencepiece as spm_library

from cascades import tokenizers
from cascades.errors import UserError

LLAMA = dict(
    add_dummy_prefix=True, bos_piece="<s>", eos_piece="</s>", pad_id=-1, unk_id=0, bos_id=1, eos_id=2,
    user_defined_symbols=[],
)  # fmt: skip
T5 = dict(bos_id=-1, unk_id=2, add_dummy_prefix=True, remove_extra_whitespaces=True, user_defined_symbols=[])
TEXTS = ["the fox", "  the quick", "fox</s> x", "a <n> b", ""]


@pytest.fixture
def folder(tmp_path, spm):
    """Returns a function that writes a folder: a SentencePiece model of the given options, and JSON files by name."""

    def write(options, model="tokenizer.model", **files):
        directory = tmp_path / "folder"
        directory.mkdir(exist_ok=True)
        (directory / model).write_bytes(spm(**options))
        for name, content in files.items():
            (directory / f"{name}.json").write_text(json.dumps(content))
        processor = spm_library.SentencePieceProcessor(model_file=str(directory / model))
        return directory, processor

    return write


def test_a_llamas_files_are_followed(folder):
    directory, processor = folder(
        LLAMA,
        tokenizer_config={
            "tokenizer_class": "LlamaTokenizer",
            "add_bos_token": True,
            "bos_token": {"content": "<s>", "lstrip": False},
            "eos_token": "<|im_end|>",
            "chat_template": "{{ bos_token }}{{ messages[0].content }}",
            "legacy": True,
        },
        added_tokens={"<|im_end|>": 420, "<n>": 421},
        generation_config={"eos_token_id": [2, 421]},
    )
    tokenizer = tokenizers.load(directory)
    assert tokenizer.vocab_size == 422 and tokenizer.eos_ids == (2, 420, 421) and tokenizer.bos_id == 1
    assert tokenizer.encode("the fox") == [1, *processor.encode("the fox")]
    assert tokenizer.encode("the<|im_end|>")[-1] == 420 and 420 in tokenizer.control
    assert tokenizer.encode("the<n>fox", special=False).count(421) == 1  # no control token: found in any text
    assert tokenizer.decode(tokenizer.encode("the<n><|im_end|>")) == "the<n>"
    assert tokenizer.chat([{"role": "user", "content": "the</s>"}]) == [1, *processor.encode("the</s>")]


@pytest.mark.parametrize("legacy", [True, False, None])
def test_legacy_puts_a_space_behind_every_control_token(folder, legacy):
    directory, processor = folder(LLAMA, tokenizer_config={"legacy": legacy})
    tokenizer = tokenizers.load(directory)
    ids = tokenizer.encode("the</s>fox")
    behind = ids[ids.index(2) + 1 :]
    assert ids[: -len(behind)] == [1, *processor.encode("the"), 2]
    assert (behind == processor.encode("fox")) is (legacy is True)
    assert tokenizer.pieces[behind[0]].startswith("▁") is (legacy is True)


@pytest.mark.parametrize(("flag", "expected"), [(None, True), (True, True), (False, False)])
def test_bos_is_put_where_the_files_ask_for_it(folder, flag, expected):
    config = {} if flag is None else {"add_bos_token": flag, "add_eos_token": not flag}
    tokenizer = tokenizers.load(folder(LLAMA, tokenizer_config=config)[0])
    ids = tokenizer.encode("fox")
    assert (ids[0] == 1) is expected and (ids[-1] == 2) is (flag is False)


def test_a_prefix_space_may_be_switched_off(folder):
    tokenizer = tokenizers.load(folder(LLAMA, tokenizer_config={"add_prefix_space": False})[0])
    assert tokenizer.decode(tokenizer.encode("fox")) == "fox" and tokenizer.pieces[tokenizer.encode("fox")[1]][0] != "▁"


def test_flags_of_pieces_and_of_added_tokens_are_followed(folder):
    added = {
        "300": {"content": "PIECE", "special": True},
        "420": {"content": "<n>", "special": False, "lstrip": True, "rstrip": True},
        "421": {"content": "<w>", "special": True, "single_word": True},
    }
    directory, processor = folder(LLAMA)
    added["300"]["content"] = piece = processor.id_to_piece(300)
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = tokenizers.load(directory)
    assert 300 in tokenizer.control and tokenizer.encode(f"a{piece}b").count(300) == 1
    assert tokenizer.split("the <n> fox", True) == [*processor.encode("the"), 420, *tokenizer.split("<n>fox", True)[1:]]
    assert 421 in tokenizer.encode("the <w> fox") and 421 not in tokenizer.encode("the<w>fox")


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens": {"<n>": 421}},
        {"added_tokens": {"<n>": 420, "<m>": 422}},
        {"added_tokens": {"<n>": 3}},
        {"tokenizer_config": {"added_tokens_decoder": {"420": {"content": "</s>"}}}},
        {"tokenizer_config": {"added_tokens_decoder": {"1": {"content": "<x>"}}}},
    ],
)
def test_ids_that_do_not_fit_the_pieces_are_refused(folder, files):
    with pytest.raises(UserError, match="neither that piece nor the next one behind them"):
        tokenizers.load(folder(LLAMA, **files)[0])


def test_a_class_that_numbers_its_pieces_anew_is_refused(folder):
    directory, _ = folder(LLAMA, tokenizer_config={"tokenizer_class": "XLMRobertaTokenizerFast"})
    with pytest.raises(UserError, match="is read by XLMRobertaTokenizer in transformers"):
        tokenizers.load(directory)


def test_spaces_that_end_a_piece_are_refused(folder):
    directory, _ = folder(LLAMA | {"treat_whitespace_as_suffix": True})
    with pytest.raises(UserError, match="puts spaces behind words .treat_whitespace_as_suffix."):
        tokenizers.load(directory)


@pytest.mark.parametrize(
    ("model", "files", "count"),
    [
        ("spiece.model", {}, 100),
        ("spiece.model", {"config": {"model_type": "t5", "vocab_size": 520}}, 100),
        ("spiece.model", {"config": {"model_type": "t5", "vocab_size": 519}}, 0),
        ("spiece.model", {"tokenizer_config": {"extra_ids": 7}}, 7),
        ("spiece.model", {"tokenizer_config": {"extra_ids": 0}}, 0),
        ("spiece.model", {"tokenizer_config": {"additional_special_tokens": ["<extra_id_0>", "<extra_id_1>"]}}, 100),
        ("tokenizer.model", {"config": {"model_type": "t5", "vocab_size": 548}}, 100),
        ("tokenizer.model", {}, 0),  # as we train them
        ("tokenizer.model", {"cascades": {"config": {"vocab_size": 512}}}, 0),
        ("tokenizer.model", {"cascades": {"config": {"vocab_size": 548}}}, 100),
        ("spiece.model", {"cascades": {"config": {"vocab_size": 520}}}, 100),
        ("tokenizer.model", {"cascades": {"config": {"vocab_size": "x"}}}, 0),
    ],
)
def test_sentinels_stand_behind_the_pieces_of_a_t5(folder, model, files, count):
    directory, processor = folder(T5, model=model, **files)
    tokenizer = tokenizers.load(directory)
    assert tokenizer.vocab_size == 420 + count
    for number in {0, 1, count - 1} & {*range(count)}:
        index = 420 + count - 1 - number
        ids = [*processor.encode("the"), index, *processor.encode("fox"), 1]
        assert tokenizer.encode(f"the <extra_id_{number}> fox") == ids
        assert tokenizer.decode(ids) == f"the<extra_id_{number}> fox"  # as transformers: no space before it
        assert tokenizer.pieces[index] == f"<extra_id_{number}>" and index not in tokenizer.control
        assert index not in tokenizer.encode(f"the <extra_id_{number}> fox", special=False)
    assert not any(index >= 420 for index in tokenizer.encode(f"<extra_id_{count}>"))


def test_pieces_that_hold_the_sentinels_get_no_more(folder):
    options = T5 | {"user_defined_symbols": ["▁<extra_id_0>", "▁<extra_id_1>"]}  # as mT5
    assert tokenizers.load(folder(options, model="spiece.model")[0]).vocab_size == 420


def test_a_preset_with_room_tells_a_t5(folder):
    directory, _ = folder(T5)
    for path in (directory, directory / "tokenizer.model"):
        assert tokenizers.load(path, "t5_small").vocab_size == 520 and tokenizers.load(path).vocab_size == 420


def test_too_many_sentinels_are_refused(folder):
    directory, _ = folder(T5, model="spiece.model", tokenizer_config={"extra_ids": 10**9})
    with pytest.raises(UserError, match="at most 10000 sentinels, but extra_ids is 1000000000"):
        tokenizers.load(directory)
