"""Tiny tokenizers of every kind, made on the spot."""

import io
import json

import gguf
import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "speculative cascades draft with a small model and verify with a large one",
    "def f(x):\n    return x + 1\n",
    "naïve café 你好 😀 12345",
] * 3
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def fast():
    """A byte-level BPE `tokenizers.Tokenizer` with ChatML's control tokens and one user-defined token."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_tokens([tokenizers.AddedToken("<tool>", normalized=False, special=False)])
    return tokenizer


@pytest.fixture
def write_gguf(tmp_path):
    """Returns a function that writes a GGUF file without tensors: keys of `tokenizer.ggml.` by keyword."""

    def write(name="tiny.gguf", chat_template=None, **keys):
        writer = gguf.GGUFWriter(tmp_path / name, "llama")
        for key, value in keys.items():
            key = f"tokenizer.ggml.{key}"
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        if chat_template is not None:
            writer.add_chat_template(chat_template)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return tmp_path / name

    return write


@pytest.fixture
def gpt2_keys(fast):
    """The keys of a GGUF file that holds `fast`, with four ids of padding behind it."""
    model = json.loads(fast.to_str())["model"]
    size = fast.get_vocab_size()
    pieces = [fast.id_to_token(index) for index in range(size)]
    kinds = [3 if piece in SPECIALS else 4 if piece == "<tool>" else 1 for piece in pieces]
    return {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": pieces + [f"[PAD{size + index}]" for index in range(4)],
        "token_type": kinds + [5] * 4,
        "merges": [" ".join(pair) for pair in model["merges"]],
        "eos_token_id": 2,
        "bos_token_id": 1,
        "add_bos_token": False,
    }


@pytest.fixture(scope="session")
def spm():
    """Returns a function that trains a small SentencePiece model and returns its bytes."""

    def train(**options):
        target = io.BytesIO()
        settings = dict(
            model_type="bpe",
            vocab_size=420,
            byte_fallback=True,
            character_coverage=0.98,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            pad_id=0,
            eos_id=1,
            bos_id=2,
            unk_id=3,
            eos_piece="<eos>",
            bos_piece="<bos>",
            user_defined_symbols=["<start_of_turn>", "<end_of_turn>", "<unused0>", "\n", "\n\n", "▁▁", "▁▁▁", "<b>"],
            minloglevel=3,
        )
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS), model_writer=target, **(settings | options)
        )
        return target.getvalue()

    return train


@pytest.fixture(scope="session")
def gemma_like(spm):
    return spm()


@pytest.fixture
def llama_keys(gemma_like):
    """The keys of a GGUF file that holds `gemma_like`, spelled as llama.cpp's converter spells Gemma."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(gemma_like)
    control = ("<start_of_turn>", "<end_of_turn>", "<unused0>")
    kinds = [3 if piece.piece in control or piece.type == 2 else piece.type for piece in proto.pieces]
    pieces = [
        piece.piece.replace("▁", " ") if kind == 4 else piece.piece
        for piece, kind in zip(proto.pieces, kinds, strict=True)
    ]
    return {
        "model": "llama",
        "tokens": pieces,
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [int(kind) for kind in kinds],
        "bos_token_id": 2,
        "eos_token_id": 1,
        "unknown_token_id": 3,
        "add_bos_token": True,
        "add_space_prefix": False,
    }


@pytest.fixture
def hf_directory(fast, tmp_path):
    """Returns a function that writes a Hugging Face directory around `fast`: JSON files by name, BOS on request."""

    def write(bos=False, **files):
        copy = tokenizers.Tokenizer.from_str(fast.to_str())
        if bos:
            copy.post_processor = processors.TemplateProcessing(
                single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
            )
        directory = tmp_path / "hf"
        directory.mkdir(exist_ok=True)
        copy.save(str(directory / "tokenizer.json"))
        for name, content in files.items():
            (directory / f"{name}.json").write_text(json.dumps(content))
        return directory

    return write
