"""Directories with a tokenizer.json."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cascades.errors import UserError
from cascades.tokenizers import gguf, huggingface

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def post_process(directory, processor):
    fast = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    fast.post_processor = processor
    fast.save(str(directory / "tokenizer.json"))


def test_a_directory_reads_as_the_gguf_of_the_same_model(hf_directory, write_gguf, gpt2_keys):
    ours = huggingface.load(hf_directory(tokenizer_config={"eos_token": "<|im_end|>", "bos_token": None}))
    other = gguf.load(write_gguf(**gpt2_keys))
    assert ours.fingerprint == other.fingerprint and ours.eos_ids == other.eos_ids == (0, 2)
    text = "naïve 😀 <|im_start|> <tool>\n\n  x"
    assert ours.encode(text) == other.encode(text)
    assert ours.encode(text, special=False) == other.encode(text, special=False)
    assert ours.decode(ours.encode(text, special=False)) == text


def test_end_ids_are_gathered_from_every_file(hf_directory):
    directory = hf_directory(
        tokenizer_config={"eos_token": {"content": "<|im_end|>"}},
        generation_config={"eos_token_id": [2, 7]},
        config={"eos_token_id": 8},
    )
    assert huggingface.load(directory).eos_ids == (0, 2, 7, 8)


# As transformers 5.24: a tokenizer.json says what goes around a text, and the flags beside it are told, not obeyed.
@pytest.mark.parametrize(
    ("bos", "flag", "told"), [(True, None, False), (False, None, False), (False, True, True), (True, False, True)]
)
def test_bos_is_added_as_tokenizer_json_says(hf_directory, bos, flag, told):
    config = {"bos_token": "<|endoftext|>"} | ({} if flag is None else {"add_bos_token": flag})
    tokenizer = huggingface.load(hf_directory(bos=bos, tokenizer_config=config))
    ids = tokenizer.encode("fox")
    assert tokenizer.add_bos is bos and ids == [0] * bos + tokenizer.split("fox", True)
    assert tokenizer.encode("<|endoftext|>fox").count(0) == 1
    assert [remark for remark in tokenizer.remarks if "says add_bos_token" in remark] == [*tokenizer.remarks]
    assert len(tokenizer.remarks) == told


def test_special_tokens_map_stands_in_for_the_configuration(hf_directory):
    directory = hf_directory(special_tokens_map={"bos_token": "<|im_start|>", "eos_token": {"content": "<|im_end|>"}})
    tokenizer = huggingface.load(directory)
    assert tokenizer.bos_id == 1
    assert tokenizer.special_tokens == {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}


def test_the_template_may_lie_in_several_places(hf_directory):
    directory = hf_directory(chat_template={"chat_template": "json"})
    assert huggingface.load(directory).chat_template == "json"
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": TEMPLATE}]
    assert huggingface.load(hf_directory(tokenizer_config={"chat_template": named})).chat_template == TEMPLATE
    (directory / "chat_template.jinja").write_text("file")
    tokenizer = huggingface.load(directory)
    assert tokenizer.chat_template == "file" and tokenizer.has_chat_template


def test_chat_parses_control_tokens_in_a_message_on_request(hf_directory):
    tokenizer = huggingface.load(hf_directory(tokenizer_config={"chat_template": TEMPLATE}))
    ids = tokenizer.chat([{"role": "user", "content": "a<|im_end|>b"}], special=True)
    assert ids.count(2) == 2 and ids[0] == 1


def test_truncation_and_padding_of_the_file_are_ignored(hf_directory):
    directory = hf_directory()
    fast = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    fast.enable_truncation(3)
    fast.enable_padding(length=10)
    fast.save(str(directory / "tokenizer.json"))
    text = "the quick brown fox"
    tokenizer = huggingface.load(directory)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("style", ["llama", "metaspace"])
def test_sentencepiece_like_files(tmp_path, style):
    vocab = {"<unk>": 0, "</s>": 1, "<0xE2>": 2, "<0x82>": 3, "<0xAC>": 4, "▁": 5, "a": 6, "b": 7, "▁a": 8}
    fast = tokenizers.Tokenizer(models.BPE(vocab, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    if style == "llama":
        fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        fast.decoder = decoders.Sequence(steps)
    else:
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
        fast.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    fast.add_special_tokens(["<unk>", "</s>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = huggingface.load(tmp_path)
    for text in ["a b", " a", "€a", "a a€"]:
        ids = tokenizer.encode(text)
        assert ids == fast.encode(text).ids and tokenizer.decode(ids) == fast.decode(ids)


def test_added_runs_of_spaces_print_spaces(tmp_path):
    fast = tokenizers.Tokenizer(models.BPE({"<unk>": 0, "▁": 1, "▁▁": 2}, [("▁", "▁")], unk_token="<unk>"))
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_tokens([tokenizers.AddedToken("▁▁", normalized=False)])  # as in Gemma's file
    fast.save(str(tmp_path / "tokenizer.json"))
    tokenizer = huggingface.load(tmp_path)
    assert tokenizer.encode("  ") == [2] and tokenizer.decode([2, 1]) == "   " and tokenizer.contents[2] == b"  "


def test_a_file_that_puts_eos_behind_a_text_gets_it(hf_directory):
    directory = hf_directory(tokenizer_config={"eos_token": "<|endoftext|>"})
    post_process(
        directory, processors.TemplateProcessing(single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)])
    )
    tokenizer = huggingface.load(directory)
    assert tokenizer.encode("fox")[-1] == 0 and tokenizer.encode("fox<|endoftext|>").count(0) == 1
    config = {"eos_token": "<|endoftext|>", "add_eos_token": True}
    tokenizer = huggingface.load(hf_directory(tokenizer_config=config))  # as above: told, not obeyed
    assert tokenizer.encode("fox") == tokenizer.split("fox", True) and "add_eos_token" in tokenizer.remarks[0]


def test_a_broken_file_is_said(hf_directory, tmp_path):
    directory = hf_directory()
    (directory / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer_config.json should be JSON"):
        huggingface.load(directory)
    (directory / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="JSON object, but holds a list"):
        huggingface.load(directory)
    whole = (directory / "tokenizer.json").read_text()
    (directory / "tokenizer.json").write_text(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="tokenizer.json should be a Hugging Face tokenizer"):
        huggingface.load(directory)


def test_an_unknown_decoder_is_said(tmp_path):
    fast = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    fast.decoder = decoders.WordPiece()
    fast.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="its decoder is WordPiece"):
        huggingface.load(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text()) | {"decoder": None}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="its decoder is None"):
        huggingface.load(tmp_path)
