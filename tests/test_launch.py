"""`launch/decode.py` from end to end on a tiny pair: what every method writes, and which runs must agree."""

import functools
import json
import math
import random
from pathlib import Path

import pytest
import tiny

from cascades import config, tokenizers
from cascades.generation import METHODS

PROMPTS = ["the quick brown fox", "a small model", "12 + 3", "lazy dog", "the", "verifies and drafts", "jumps", "fox"]
FIELDS = (
    "tokens_out rounds verifier_calls drafter_steps drafted accepted rejected accepted_by_rule deferred decided "
    "block_efficiency acceptance_rate rejection_rate deferral_rate wall_s compile_s ttft_s tokens_per_s"
).split()
ORIGINS = {
    "speculative": {"draft", "rule", "correction", "bonus"},
    "verifier_only": {"verifier"},
    "drafter_only": {"drafter"},
    "token_cascade": {"drafter", "verifier"},
    "oracle_cascade": {"bonus"},
    "sequence_cascade": {"drafter", "verifier"},
}
SAMPLED = {"TEMPERATURE": 1.0, "SEED": 7, "RULE": "@token_v3", "ALPHA": 0.3}
GUMBEL = {"COUPLING": "gumbel", "BONUS": "target"}


@pytest.fixture(scope="module")
def decode(tiny_files, tmp_path_factory):
    """Returns a function that launches and returns the lines that were written, by prompt. Equal runs run once."""

    @functools.cache
    def run(prompts, knobs):
        folder = tmp_path_factory.mktemp("run")
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
        files = [f"--input={folder}/prompts.jsonl", f"--output={folder}/answers.jsonl"]
        assert tiny.launch(*tiny.pair(tiny_files, **{"K_MAX": 2, "BATCH_SIZE": 3, **dict(knobs)}), *files) == 0
        written = tiny.lines(folder / "answers.jsonl")
        assert sorted(line["prompt"] for line in written) == sorted(prompts)
        return {line["prompt"]: line for line in written}

    return lambda prompts=tuple(PROMPTS[:3]), **knobs: run(prompts, tuple(knobs.items()))


def tokens(lines):
    return {prompt: line["token_ids"] for prompt, line in lines.items()}


# What is written.

KNOBS = {method: {} for method in METHODS} | {
    "speculative": {"RULE": "@lossless"},
    "token_cascade": {"RULE": "@chow", "ALPHA": 0.5},
    "oracle_cascade": SAMPLED | GUMBEL,
    "sequence_cascade": {"ALPHA": 1.0},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_line_is_whole_and_adds_up(decode, tiny_files, method):
    tokenizer = tokenizers.load(tiny_files.verifier)
    for line in decode(METHOD=method, **KNOBS[method]).values():
        stats = line["stats"]
        assert set(FIELDS) <= set(stats)
        assert stats["tokens_out"] == len(line["token_ids"]) == len(line["origins"]) > 0
        assert line["text"] == tokenizer.decode(line["token_ids"])
        assert not any(special in line["text"] for special in tiny.SPECIALS)
        assert set(line["origins"]) <= ORIGINS[method]
        ended = line["token_ids"][-1] in tokenizer.eos_ids
        assert line["finish_reason"] == ("eos" if ended else "length")
        assert ended or stats["tokens_out"] == 24
        assert not any(token in tokenizer.eos_ids for token in line["token_ids"][:-1])

        drafts = sum(origin in ("draft", "rule") for origin in line["origins"])
        assert stats["accepted"] == drafts <= stats["drafted"] <= stats["drafter_steps"]
        assert stats["accepted_by_rule"] == line["origins"].count("rule")
        assert stats["rejected"] == line["origins"].count("correction")
        assert stats["decided"] == stats["accepted"] + stats["rejected"] or method in (
            "token_cascade",
            "sequence_cascade",
        )
        assert 0 <= stats["deferred"] <= stats["decided"]
        for rate, part, whole in (
            ("block_efficiency", "tokens_out", "verifier_calls"),
            ("acceptance_rate", "accepted", "drafted"),
            ("rejection_rate", "rejected", "decided"),
            ("deferral_rate", "deferred", "decided"),
        ):
            if method == "sequence_cascade" and rate == "rejection_rate":
                continue  # what is decided there is a whole answer
            expected = pytest.approx(stats[part] / stats[whole], abs=2e-4) if stats[whole] else None
            assert stats[rate] == expected, rate
        assert 0 < stats["ttft_s"] <= stats["wall_s"]
        assert stats["tokens_per_s"] == pytest.approx(stats["tokens_out"] / stats["wall_s"], rel=0.01)
        assert stats["compile_s"] >= 0
        if method == "speculative":
            assert stats["rounds"] == stats["verifier_calls"] <= stats["tokens_out"]
            assert sum(stats["accepted_histogram"]) == stats["rounds"]
            assert sum(n * count for n, count in enumerate(stats["accepted_histogram"])) == stats["accepted"]
        if method == "token_cascade":
            assert stats["verifier_calls"] == line["origins"].count("verifier") == stats["deferred"]
        if method == "drafter_only":
            assert stats["verifier_calls"] == 0 and stats["drafter_steps"] == stats["rounds"] == stats["tokens_out"]


def test_the_methods_mix_what_they_should(decode):
    seen = {method: decode(METHOD=method, **KNOBS[method]).values() for method in ("speculative", "token_cascade")}
    assert {origin for line in seen["speculative"] for origin in line["origins"]} >= {"draft", "correction"}
    assert {origin for line in seen["token_cascade"] for origin in line["origins"]} == ORIGINS["token_cascade"]


def test_the_configuration_is_kept_beside_the_results(tiny_files, tmp_path):
    assert (
        tiny.launch(
            *tiny.pair(tiny_files, METHOD="verifier_only", MAX_NEW_TOKENS=3, SEED=5),
            "--prompt=the",
            f"--output={tmp_path}/answers.jsonl",
        )
        == 0
    )
    kept = (tmp_path / "answers.config.gin").read_text()
    assert "SEED = 5" in kept and "METHOD = 'verifier_only'" in kept
    config.configure(_decode(), str(tmp_path / "answers.config.gin"))  # it repeats the run


def _decode():
    from cascades.runs.decode import decode

    return decode


def test_other_fields_of_a_prompt_come_along(tiny_files, tmp_path):
    entries = [{"id": 7, "question": "the"}, {"turns": ["the", "more"]}, "the"]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    knobs = tiny.pair(tiny_files, METHOD="verifier_only", MAX_NEW_TOKENS=3)
    assert tiny.launch(*knobs, f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out.jsonl") == 0
    written = tiny.lines(tmp_path / "out.jsonl")
    assert [line["prompt"] for line in written] == ["the"] * 3
    assert [line.get("input") for line in written] == [{"id": 7, "question": "the"}, {"turns": ["the", "more"]}, None]


def test_shards_decode_what_the_whole_would(tiny_files, tmp_path, capsys):
    entries = ["the", "a small", "the", {"prompt": ""}, "the"]  # equal ones get different samples
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    knobs = tiny.pair(tiny_files, METHOD="verifier_only", MAX_NEW_TOKENS=8, TEMPERATURE=1.0, BATCH_SIZE=2)

    def texts(*arguments, code):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"
        assert tiny.launch(*knobs, f"--input={tmp_path}/in.jsonl", f"--output={path}", *arguments) == code
        return sorted((line["prompt"], line.get("text")) for line in tiny.lines(path))

    whole = texts(code=2)
    assert len({text for prompt, text in whole if prompt == "the"}) == 3
    assert sorted(texts("--shard=0/2", code=0) + texts("--shard=1/2", code=2)) == whole
    assert texts("--shard=6/7", code=0) == []
    capsys.readouterr()
    assert tiny.launch(*knobs, f"--input={tmp_path}/in.jsonl", "--shard=2/2") == 2
    assert "--shard must be I/N" in capsys.readouterr().err


def test_a_second_run_appends(tiny_files, tmp_path):
    file = tmp_path / "answers.jsonl"
    file.write_text('{"text": "old"}\n{"text": "torn')
    knobs = tiny.pair(tiny_files, METHOD="verifier_only", MAX_NEW_TOKENS=3)
    assert tiny.launch(*knobs, "--prompt=the", f"--output={file}") == 0
    old, torn, new = file.read_text().splitlines()
    assert (old, torn) == ('{"text": "old"}', '{"text": "torn') and json.loads(new)["prompt"] == "the"


# Stop strings.


def test_a_stop_string_cuts_the_text(decode, tiny_files):
    tokenizer = tokenizers.load(tiny_files.verifier)
    whole = decode(METHOD="verifier_only")[PROMPTS[0]]
    pieces = [tokenizer.decode([token]) for token in whole["token_ids"]]
    # Within one token, and across two: the end of a token and the beginning of the next one.
    at = next(i for i in range(3, 20) if (pieces[i] + pieces[i + 1]).isascii() and pieces[i] != pieces[i + 1])
    for stop in (pieces[at], pieces[at][-1] + pieces[at + 1][0]):
        cut = decode(METHOD="verifier_only", STOP=(stop, "never said"))[PROMPTS[0]]
        assert cut["text"] == whole["text"][: whole["text"].index(stop)]
        assert cut["finish_reason"] == "stop"
        count = len(cut["token_ids"])
        assert cut["token_ids"] == whole["token_ids"][:count] and cut["stats"]["tokens_out"] == count
        assert stop in tokenizer.decode(cut["token_ids"]) and stop not in tokenizer.decode(cut["token_ids"][:-1])


# Which runs agree.


def test_lossless_speculation_is_the_verifier(decode):
    speculative = decode(METHOD="speculative", RULE="@lossless")
    assert tokens(speculative) == tokens(decode(METHOD="verifier_only"))
    assert sum(line["stats"]["accepted"] for line in speculative.values()) > 5


@pytest.mark.parametrize("knobs", [GUMBEL, {"LOOKAHEAD": "@fixed()", "fixed.k": 2}], ids=["gumbel", "maximal"])
def test_a_text_depends_on_neither_batch_nor_order(decode, knobs):
    shuffled = random.Random(0).sample(PROMPTS, len(PROMPTS))
    alone = tokens(decode(tuple(PROMPTS), BATCH_SIZE=1, **SAMPLED, **knobs))
    assert tokens(decode(tuple(PROMPTS), BATCH_SIZE=3, **SAMPLED, **knobs)) == alone
    assert tokens(decode(tuple(shuffled), BATCH_SIZE=3, **SAMPLED, **knobs)) == alone
    assert tokens(decode(tuple(shuffled), BATCH_SIZE=8, **SAMPLED, **knobs)) == alone
    assert len({tuple(ids) for ids in alone.values()}) == len(PROMPTS)
    assert tokens(decode(tuple(PROMPTS), BATCH_SIZE=3, **SAMPLED | {"SEED": 8}, **knobs)) != alone


def test_the_oracle_cascade_is_what_speculation_computes(decode):
    oracle = decode(tuple(PROMPTS), METHOD="oracle_cascade", **SAMPLED, **GUMBEL)
    assert tokens(oracle) == tokens(decode(tuple(PROMPTS), BATCH_SIZE=3, **SAMPLED, **GUMBEL))


def test_the_ends_of_a_sequence_cascade(decode):
    verifier, drafter = decode(METHOD="verifier_only"), decode(METHOD="drafter_only")
    assert tokens(verifier) != tokens(drafter)
    deferring = decode(METHOD="sequence_cascade", ALPHA=0.0)
    assert tokens(deferring) == tokens(verifier)
    assert all(line["stats"]["deferral_rate"] == 1 for line in deferring.values())
    trusting = decode(METHOD="sequence_cascade", ALPHA=math.inf)
    assert tokens(trusting) == tokens(drafter)
    assert all(line["stats"]["deferral_rate"] == 0 for line in trusting.values())
    assert all(line["stats"]["verifier_calls"] == 0 for line in trusting.values())


def test_the_ends_of_a_token_cascade(decode):
    knobs = {"METHOD": "token_cascade", "RULE": "@chow"}
    assert tokens(decode(ALPHA=1.0, **knobs)) == tokens(decode(METHOD="drafter_only"))
    assert tokens(decode(ALPHA=0.0, **knobs)) == tokens(decode(METHOD="verifier_only"))


def test_equal_prompts_are_sampled_apart(tiny_files, tmp_path):
    file = tmp_path / "out.jsonl"
    knobs = tiny.pair(tiny_files, METHOD="verifier_only", TEMPERATURE=1.0)
    assert tiny.launch(*knobs, "--prompt=the", "--prompt=the", f"--output={file}") == 0
    first, second = tiny.lines(file)
    assert first["token_ids"] != second["token_ids"]


# What a person sees.


def test_the_text_goes_to_stdout_and_the_rest_to_stderr(tiny_files, capsys, tmp_path):
    knobs = tiny.pair(tiny_files, METHOD="verifier_only", BATCH_SIZE=2)
    file = tmp_path / "out.jsonl"
    assert tiny.launch(*knobs, "--prompt=the", "--prompt=lazy\ndog", "--prompt=12", f"--output={file}") == 0
    out, err = capsys.readouterr()
    by_prompt = {line["prompt"]: line["text"] for line in tiny.lines(file)}
    assert out == "".join(
        f"[{number}/3] {' '.join(prompt.split())}\n{by_prompt[prompt]}\n\n"
        for number, prompt in enumerate(["the", "lazy\ndog", "12"], 1)
    )
    assert err.startswith("verifier_only: ") and "tok/s" in err and "all 3" in err and "compiled in" in err
    assert err.splitlines()[1].startswith("computing in float32: ")


def test_a_dtype_that_is_asked_for_needs_no_reason(tiny_files, capsys):
    assert tiny.launch(*tiny.pair(tiny_files, METHOD="verifier_only", DTYPE="float32"), "--prompt=the") == 0
    assert "computing in" not in capsys.readouterr().err


def test_one_prompt_alone_is_the_whole_output(tiny_files, capsys, tmp_path):
    file = tmp_path / "out.jsonl"
    for method in ("verifier_only", "sequence_cascade"):
        knobs = tiny.pair(tiny_files, METHOD=method, ALPHA=1e3 if method == "sequence_cascade" else 0.1)
        assert tiny.launch(*knobs, "--prompt=the", f"--output={file}") == 0
        assert capsys.readouterr().out == tiny.lines(file)[-1]["text"] + "\n"


def test_a_context_ends_an_answer(tiny_files, tmp_path):
    file = Path(tmp_path / "out.jsonl")
    for knobs in ({"CONTEXT": 16, "MAX_NEW_TOKENS": 200}, {"CONTEXT": None, "MAX_NEW_TOKENS": 400}):
        arguments = tiny.pair(tiny_files, METHOD="verifier_only", IGNORE_EOS=True, **knobs)
        assert tiny.launch(*arguments, "--prompt=12 + 3", f"--output={file}") == 0
    short, long = tiny.lines(file)
    prompt = len(tokenizers.load(tiny_files.verifier).encode("12 + 3"))
    assert prompt + short["stats"]["tokens_out"] == 16 and short["finish_reason"] == "length"
    assert prompt + long["stats"]["tokens_out"] == tiny.CONTEXT and long["finish_reason"] == "length"
