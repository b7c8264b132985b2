"""`launch/decode.py` from end to end on tiny encoder–decoders, as transformers writes them, with T5's SentencePiece."""

import io
import json
import pathlib
import sys

import numpy as np
import pytest
import sentencepiece
import tiny
from safetensors.numpy import save_file

from cascades import tokenizers

sys.path.insert(0, str(pathlib.Path(__file__).parent / "golden"))
import t5_cases

PROMPTS = ["the quick brown fox", "a small model", "12 + 3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Returns a folder: large and small share a vocabulary, other begins its answers with another token."""
    folder, model = tmp_path_factory.mktemp("t5"), io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(tiny.CORPUS * 9),
        model_writer=model,
        vocab_size=56,  # the models have five logits more
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    for name, case, changes in (("large", "v1_1", {}), ("small", "v1_0", {}), ("other", "v1_0", {"start": 2})):
        (folder / name).mkdir()
        (folder / name / "spiece.model").write_bytes(model.getvalue())
        raw = t5_cases.huggingface_config(case) | {f"decoder_{key}_token_id": value for key, value in changes.items()}
        (folder / name / "config.json").write_text(json.dumps(raw))
        tensors = t5_cases.huggingface_tensors(case, t5_cases.make_params(case))
        tensors = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        save_file(tensors, folder / name / "model.safetensors")
    return folder


@pytest.fixture
def decode(models, tmp_path):
    """Returns a function that launches and returns the lines that were written, by prompt."""

    def run(**knobs):
        output = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        given = {
            "VERIFIER": str(models / "large"), "DRAFTER": str(models / "small"), "COSTS": (0.2, (1.0,) * 3), "K_MAX": 2,
            "MAX_NEW_TOKENS": 24, "BATCH_SIZE": 2, "RULE": "@lossless",
        } | knobs  # fmt: skip
        prompts = [f"--prompt={prompt}" for prompt in PROMPTS]
        assert tiny.launch(*tiny.knobs(**given), *prompts, f"--output={output}") == 0
        written = {line["prompt"]: line for line in tiny.lines(output)}
        assert set(written) == set(PROMPTS)
        return written

    return run


def test_a_pair_decodes_as_its_verifier(decode, models):
    alone = decode(METHOD="verifier_only")
    tokenizer = tokenizers.load(models / "large")
    assert tokenizer.encode(PROMPTS[0])[-1] == 1  # T5 reads EOS behind its input
    for line in alone.values():
        assert line["text"] == tokenizer.decode(line["token_ids"]) and len(line["token_ids"]) > 0
    assert len({tuple(line["token_ids"]) for line in alone.values()}) == len(PROMPTS)
    for drafter in (str(models / "small"), "ngram://2", f"ngram://2+{models / 'small'}"):
        both = decode(DRAFTER=drafter)
        assert {prompt: line["token_ids"] for prompt, line in both.items()} == {
            prompt: line["token_ids"] for prompt, line in alone.items()
        }
        assert sum(line["stats"]["drafted"] for line in both.values()) > 0
    itself = decode(DRAFTER=str(models / "large"), LOOKAHEAD="@fixed()")
    assert {line["stats"]["acceptance_rate"] for line in itself.values()} == {1.0}


def test_two_that_begin_otherwise_do_not_go_together(models, capfd):
    knobs = tiny.knobs(VERIFIER=str(models / "large"), DRAFTER=str(models / "other"))
    assert tiny.launch(*knobs, "--prompt=the") == 2
    assert "cannot draft for" in capfd.readouterr().err
