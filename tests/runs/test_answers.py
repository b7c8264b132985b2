"""Runs with requests that cannot be decoded: a sentence and a line for each, answers for the others, exit code 2."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
from rich.console import Console

from cascades.errors import Unanswered
from cascades.generation import Result, engine
from cascades.generation.prompts import Bad
from cascades.lookahead import fixed
from cascades.runs import answers, terminal
from cascades.runs.decode import decode

LONG = "the quick brown fox " * 40
ALONE = {"METHOD": "verifier_only", "MAX_NEW_TOKENS": 8, "BATCH_SIZE": 2}


def launch(capsys, *arguments):
    code = tiny.launch(*arguments)
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, [line for line in err.splitlines() if line.startswith("error: ")], err


def strict(path):
    """The lines of a file, which must be JSON."""

    def constant(name):
        pytest.fail(f"{name} is no JSON")

    return [json.loads(line, parse_constant=constant) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def no_compile(monkeypatch):
    monkeypatch.setattr(engine, "compile_for", lambda *args: pytest.fail("compiled"))


LINES = [
    '{"prompt": "the quick", "id": 0}',
    json.dumps({"prompt": LONG, "id": 1}),
    '{"prompt": "torn',
    '{"prompt": "a small", "id": 3}',
    '{"prompt": "x", "n": ' + "9" * 5000 + ', "id": 4}',
    '{"prompt": "12 + 3", "n": NaN}',
    "[" * 2000,
    '{"prompt": " "}',
    '{"prompt": ["lazy"]}',
    '"lazy dog"',
]
BAD = [1, 2, 4, 5, 6, 7, 8]


def test_bad_lines_cost_no_answer(tiny_files, tmp_path, capsys):
    good = [line for at, line in enumerate(LINES) if at not in BAD]
    for name, lines in (("all", LINES), ("good", good)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    knobs = tiny.pair(tiny_files, **ALONE)
    code, _, errors, _ = launch(capsys, *knobs, f"--input={tmp_path}/good.jsonl", f"--output={tmp_path}/good.out.jsonl")
    assert code == 0 and not errors
    code, out, errors, err = launch(
        capsys, *knobs, f"--input={tmp_path}/all.jsonl", f"--output={tmp_path}/all.out.jsonl"
    )
    assert code == 2 and len(errors) == len(BAD)
    assert any("prompt 2 of 10 has " in line and "context of 320" in line for line in errors)
    assert sum(f"line {at + 1} of {tmp_path}/all.jsonl " in "\n".join(errors) for at in BAD[1:]) == len(BAD) - 1
    assert "compiled in" in err and "all 3" in err
    assert [line for line in out.splitlines() if line.startswith("[")] == [
        "[1/10] the quick",
        "[4/10] a small",
        "[10/10] lazy dog",
    ]
    whole, expected = strict(tmp_path / "all.out.jsonl"), strict(tmp_path / "good.out.jsonl")
    told = {line["prompt"]: line["token_ids"] for line in whole if "error" not in line}
    assert told == {line["prompt"]: line["token_ids"] for line in expected} and len(told) == 3
    failed = [line for line in whole if "error" in line]
    assert len(failed) == len(BAD)
    for line in failed:
        assert line["finish_reason"] == "error" and line["token_ids"] == [] and line["text"] == ""
        assert f"error: {line['error']}" in errors
    assert {line.get("line") for line in failed} == {None, *(at + 1 for at in BAD[1:])}
    long = next(line for line in failed if line["prompt"] == LONG)
    assert long["input"] == {"id": 1}
    large = next(line for line in failed if line.get("line") == 5)
    assert large["prompt"] == "x" and large["input"] == {"prompt": "x", "n": None, "id": 4}


def test_a_line_may_name_its_rule(tiny_files, tmp_path, capsys):
    lines = [
        {"prompt": "the quick", "rule": "lossless"},
        {"prompt": "the quick", "rule": "chow", "alpha": 1},
        {"prompt": "the quick", "rule": "token_v3"},
        {"prompt": "the quick"},
        {"prompt": "the quick", "rule": "chow", "alpha": 1.5},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    knobs = {"K_MAX": 2, "MAX_NEW_TOKENS": 8, "BATCH_SIZE": 3, "RULE": "@lossless", "MORE_RULES": "@"}
    knobs = [each.replace("MORE_RULES=@", "MORE_RULES=[@chow]") for each in tiny.pair(tiny_files, **knobs)]
    code, _, errors, err = launch(capsys, *knobs, f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out.jsonl")
    assert code == 2 and len(errors) == 2 and "(lossless); requests may name chow" in err
    assert "prompt 3 of 5: the rule must be one that is compiled in (lossless, chow), not 'token_v3'" in errors[0]
    assert "prompt 5 of 5: ALPHA for chow must be a number from 0 to 1, not 1.5" in errors[1]
    found = {json.dumps(line.get("input")): line for line in strict(tmp_path / "out.jsonl")}
    assert len(found) == 5
    lossless, plain = found['{"rule": "lossless"}'], found["null"]
    drafters = found['{"rule": "chow", "alpha": 1}']
    assert lossless["token_ids"] == plain["token_ids"] and lossless["stats"]["accepted_by_rule"] == 0
    assert drafters["stats"]["rejected"] == 0 and drafters["stats"]["accepted_by_rule"] > 0


def test_only_bad_lines_need_no_model(tiny_files, no_compile, tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text("\n".join(LINES[at] for at in BAD[1:]))
    arguments = tiny.pair(tiny_files, VERIFIER="no/such/model.gguf", **ALONE)
    code, out, errors, err = launch(
        capsys, *arguments, f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out.jsonl"
    )
    assert code == 2 and out == "" and len(errors) == len(BAD) - 1 == err.count("\n")
    assert len(strict(tmp_path / "out.jsonl")) == len(BAD) - 1


def test_only_prompts_that_are_too_long(tiny_files, no_compile, tmp_path, capsys):
    arguments = [*tiny.pair(tiny_files, **ALONE), f"--prompt={LONG}", f"--prompt={LONG}b", f"--prompt={LONG}c"]
    code, out, errors, err = launch(capsys, *arguments, f"--output={tmp_path}/out.jsonl")
    assert code == 2 and out == "" and len(errors) == 3 == err.count("\n")
    assert [line["prompt"] for line in strict(tmp_path / "out.jsonl")] == [LONG, f"{LONG}b", f"{LONG}c"]
    code, *_ = launch(capsys, *arguments)  # without a file
    assert code == 2


def test_a_template_that_refuses_and_a_context_that_is_small(tiny_files, tmp_path, capsys, monkeypatch):
    from cascades.errors import UserError
    from cascades.tokenizers import Tokenizer

    chat = Tokenizer.chat

    def refusing(self, messages, *rest, **options):
        if "dog" in messages[0]["content"]:
            raise UserError("the model's chat template refused the conversation")
        return chat(self, messages, *rest, **options)

    monkeypatch.setattr(Tokenizer, "chat", refusing)
    knobs = tiny.pair(tiny_files, **ALONE | {"VERIFIER": tiny_files.chat, "CONTEXT": 64})
    prompts = ["--prompt=the", "--prompt=lazy dog", f"--prompt={LONG[:200]}", "--prompt=12"]
    code, out, errors, _ = launch(capsys, *knobs, *prompts, f"--output={tmp_path}/out.jsonl")
    assert code == 2 and len(errors) == 2 and "refused" in errors[0] and "or raise CONTEXT" in errors[1]
    assert "[1/4] the" in out and "[4/4] 12" in out and "[2/4]" not in out
    assert sorted("error" in line for line in strict(tmp_path / "out.jsonl")) == [False, False, True, True]


# Models that say NaN, and a drafter that is short, through the launcher.


@pytest.fixture(scope="module")
def others(tiny_files, tmp_path_factory):
    """A verifier that cannot read "x", a drafter that says NaN, and one with a context of 64."""
    folder = tmp_path_factory.mktemp("others")
    tokenizer, params = tiny.train(tiny.CORPUS), tiny.weights()
    params["embed"]["embedding"][tokenizer.encode("x").ids] = np.nan
    tiny.write_gguf(folder / "broken.gguf", params, tokenizer)
    shorter = tiny.weights()
    shorter["layers"] = {"0": shorter["layers"]["0"]}
    shorter["final_norm"]["scale"][...] = np.nan
    tiny.write_folder(folder / "nan", shorter, tokenizer)
    shutil.copytree(tiny_files.drafter, folder / "short")
    config = json.loads((folder / "short" / "config.json").read_text())
    (folder / "short" / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 64}))
    return folder


def test_a_verifier_that_says_nan(tiny_files, others, tmp_path, capsys):
    prompts = ["--prompt=the quick", "--prompt=a sixth", "--prompt=lazy"]
    knobs = ALONE | {"BATCH_SIZE": 3}
    code, *_ = launch(capsys, *tiny.pair(tiny_files, **knobs), *prompts, f"--output={tmp_path}/sound.jsonl")
    arguments = tiny.pair(tiny_files, **knobs | {"VERIFIER": str(others / "broken.gguf")})
    code, out, errors, err = launch(capsys, *arguments, *prompts, f"--output={tmp_path}/out.jsonl")
    assert code == 2 and len(errors) == 1 and "prompt 2 of 3: the verifier says NaN" in errors[0]
    assert "compiled in" in err and " error " in err
    lines = {line["prompt"]: line for line in strict(tmp_path / "out.jsonl")}
    sound = {line["prompt"]: line for line in strict(tmp_path / "sound.jsonl")}
    assert lines["a sixth"]["finish_reason"] == "error" and lines["a sixth"]["token_ids"] == []
    for prompt in ("the quick", "lazy"):
        ids = sound[prompt]["token_ids"]
        known = tiny.train(tiny.CORPUS).encode("x").ids[0]
        assert lines[prompt]["token_ids"] == ids or known in ids
    assert "[2/3] a sixth" in out


@pytest.mark.parametrize("method", ["speculative", "token_cascade", "sequence_cascade", "drafter_only"])
def test_a_drafter_that_says_nan(tiny_files, others, tmp_path, capsys, method):
    prompts = ["--prompt=the quick", "--prompt=lazy"]
    common = {**ALONE, "K_MAX": 2, "MAX_NEW_TOKENS": 8}
    launch(capsys, *tiny.pair(tiny_files, **common), *prompts, f"--output={tmp_path}/alone.jsonl")
    knobs = common | {"METHOD": method, "DRAFTER": str(others / "nan")}
    knobs |= {"RULE": "@chow", "ALPHA": 1.0} if method == "token_cascade" else {"RULE": "@lossless"}
    code, _, errors, err = launch(capsys, *tiny.pair(tiny_files, **knobs), *prompts, f"--output={tmp_path}/out.jsonl")
    lines, alone = (strict(tmp_path / name) for name in ("out.jsonl", "alone.jsonl"))
    if method == "drafter_only":
        assert code == 2 and len(errors) == 2 and "the drafter says NaN" in errors[0]
        assert [line["token_ids"] for line in lines] == [[], []]
        return
    assert code == 0 and "the drafter said NaN: 2 requests went on without it" in err
    assert [line["stats"]["drafter_nan"] for line in lines] == [1, 1]
    assert {line["prompt"]: line["token_ids"] for line in lines} == {
        line["prompt"]: line["token_ids"] for line in alone
    }


def test_a_drafter_with_a_short_context(tiny_files, others, tmp_path, capsys):
    prompts = ["--prompt=the quick", f"--prompt={LONG[:150]}"]
    common = {"K_MAX": 2, "MAX_NEW_TOKENS": 90, "BATCH_SIZE": 2, "DRAFTER": str(others / "short"), "ALPHA": 0.0}
    found = {}
    for method in ("verifier_only", "speculative"):
        knobs = tiny.pair(tiny_files, METHOD=method, RULE="@lossless", IGNORE_EOS=True, **common)
        code, _, errors, _ = launch(capsys, *knobs, *prompts, f"--output={tmp_path}/{method}.jsonl")
        assert code == 0 and not errors
        found[method] = {line["prompt"]: line for line in strict(tmp_path / f"{method}.jsonl")}
    for prompt, line in found["speculative"].items():
        assert line["token_ids"] == found["verifier_only"][prompt]["token_ids"] and len(line["token_ids"]) == 90
        assert (line["stats"]["drafted"] > 0) == (prompt == "the quick")
    for method in ("drafter_only", "token_cascade", "sequence_cascade"):
        rule = {"RULE": "@chow"} if method == "token_cascade" else {}
        knobs = tiny.pair(tiny_files, METHOD=method, **common, **rule)
        code, _, errors, _ = launch(capsys, *knobs, prompts[1])
        assert code == 2 and f"METHOD='{method}' needs the drafter for every token" in errors[0]
        assert "in a context of 64" in errors[0] and "holds 64" in errors[0]
        code, _, errors, _ = launch(
            capsys, *tiny.pair(tiny_files, METHOD=method, **common, **rule, CONTEXT=100), "--prompt=a"
        )
        assert code == 2 and "CONTEXT must be at most 64" in errors[0]


# The function itself, and what is shown.


def test_the_function_raises_once_all_is_done(tiny_files, tmp_path):
    output = str(tmp_path / "out.jsonl")
    with pytest.raises(Unanswered, match="1 of 2 prompts have no whole answer; the first: prompt 2 of 2 has") as caught:
        knobs = {"method": "verifier_only", "lookahead": fixed(2), "max_new_tokens": 8}
        decode(**tiny.specs(verifier=tiny_files.verifier, **knobs, prompt=["the quick", LONG], output=output))
    first, second = caught.value.results
    assert first.error is None and len(first.token_ids) == 8 and second.error and second.stats == {}
    assert len(strict(output)) == 2


def test_what_is_written_of_a_request():
    result = Result("p", "t", [1], ["draft"], "eos", {})
    assert "error" not in answers.record(result, None) and "input" not in answers.record(result, {"prompt": "p"})
    assert answers.record(result, {"prompt": "p", "id": 1})["input"] == {"id": 1}
    failed = answers.failure("p", "why", Console(quiet=True))
    assert answers.record(failed, {"prompt": "p"})["error"] == "why" == failed.error
    line = answers.record(failed, Bad("p", "why", 3, {"prompt": "p"}))
    assert line["line"] == 3 and line["input"] == {"prompt": "p"}
    assert "input" not in answers.record(failed, Bad("", "why", 3))


def test_nothing_is_shown_of_results_that_are_not_there():
    assert terminal.table([]).row_count == 0 and terminal.positions([]) == "" == terminal.without_drafter([])
    assert terminal.compile_seconds([]) == 0
    once = [(0, Result("", "", [], [], "eos", {"drafter_nan": 1})), (1, Result("", "", [], [], "eos", {}))]
    assert terminal.without_drafter(once) == "the drafter said NaN: 1 request went on without it"
