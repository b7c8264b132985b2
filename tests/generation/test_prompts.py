"""Prompts from files: what is understood. (tests/test_bad_input.py has what is refused.)"""

import json

import pytest

from cascades.errors import UserError
from cascades.generation import prompts


def test_every_form_of_a_line(tmp_path):
    entries = ["a", {"prompt": "b", "id": 1}, {"question": "c"}, {"text": "d"}, {"turns": ["e", "f"]}]
    entries += [{"text": "no", "question": "no", "prompt": "g"}]
    file = tmp_path / "in.jsonl"
    file.write_text("\n\n".join(map(json.dumps, entries)))
    found = prompts.read(str(file))
    assert [record["prompt"] for record in found] == list("abcdeg")
    assert found[1]["id"] == 1 and found[4]["turns"] == ["e", "f"]


def test_a_file_of_windows(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_bytes('{"prompt": "é"}\r\n{"prompt": "b"}\r\n'.encode("utf-8-sig"))
    assert [record["prompt"] for record in prompts.read(str(file))] == ["é", "b"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\v"])
def test_what_python_takes_for_ends_of_lines_may_stand_in_a_prompt(tmp_path, mark):
    file = tmp_path / "in.jsonl"
    escaped = json.dumps({"prompt": f"a{mark}b"}, ensure_ascii=mark == "\v")
    file.write_text(escaped + "\n", encoding="utf-8")
    assert prompts.read(str(file)) == [{"prompt": f"a{mark}b"}]


def test_the_command_line_comes_first(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('"c"\n')
    assert [record["prompt"] for record in prompts.collect(["a", "b"], str(file))] == ["a", "b", "c"]
    assert prompts.collect(None, None) == []


def test_bytes_that_are_no_text_become_printable(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text('{"prompt": "a\\ud800b"}\n"\\ud83d\\ude00"\n')
    assert [record["prompt"] for record in prompts.read(str(file))] == ["a\N{REPLACEMENT CHARACTER}b", "😀"]
    assert prompts.collect(["a\udcff"], None) == [{"prompt": "a\N{REPLACEMENT CHARACTER}"}]


def test_a_line_deeper_than_python(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_text("[" * 100_000 + "\n")
    with pytest.raises(UserError, match="line 1 of .* should be JSON"):
        prompts.read(str(file))


# Lines that cannot be used: each for itself, with what could be read of it.

DIGITS = "9" * 5000
WRONG = {
    "torn": ('{"prompt": ', "should be JSON", "", None),
    "two": ('{"prompt": "a"} {"prompt": "b"}', "should be JSON", "", None),
    "deep": ("[" * 100_000, "should be JSON", "", None),
    "deep_but_read": ('{"prompt": "a", "x": ' + "[" * 150 + "]" * 150 + "}", "more than 100 lists", "", None),
    "bigint": (f'{{"prompt": "a", "n": {DIGITS}}}', "a number of 5000 digits", "a", {"prompt": "a", "n": None}),
    "negative": (f'{{"prompt": "a", "n": [-{DIGITS}]}}', "a number of 5001 digits", "a", {"prompt": "a", "n": [None]}),
    "nan": ('{"prompt": "a", "n": NaN}', "holds NaN, which is no JSON", "a", {"prompt": "a", "n": None}),
    "infinity": ('{"n": {"m": -Infinity}, "text": "b"}', "holds -Infinity", "b", {"n": {"m": None}, "text": "b"}),
    "overflow": ('{"prompt": "a", "n": 1e999}', "too large to keep", "a", {"prompt": "a", "n": None}),
    "twice": ('{"prompt": "a", "prompt": "b"}', "the field 'prompt' more than once", "b", {"prompt": "b"}),
    "twice_inside": ('{"prompt": "a", "x": [{"y": 1, "y": 1}]}', "'y' more than once", "a", ...),
    "list": ("[1, 2]", "holds no prompt", "", [1, 2]),
    "number": ("3", "holds no prompt", "", 3),
    "null": ("null", "holds no prompt", "", None),
    "wrong_type": ('{"prompt": 3, "text": "b"}', "was expected, not a number", "", {"prompt": 3, "text": "b"}),
    "wrong_list": ('{"question": ["a"]}', "was expected, not a list", "", {"question": ["a"]}),
    "wrong_turn": ('{"turns": [{"role": "user", "content": "a"}]}', "was expected, not an object", "", ...),
    "no_turn": ('{"turns": []}', "was expected, not a list", "", {"turns": []}),
    "nothing": ('{"id": 1, "prompt": null}', "holds no prompt", "", {"id": 1, "prompt": None}),
    "blank": ('{"prompt": " \\t", "id": 2}', "holds an empty prompt", " \t", {"prompt": " \t", "id": 2}),
    "bytes": (b'"\xff"', "should be UTF-8 text", "", None),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_line_costs_no_other(tmp_path, name):
    line, said, prompt, fields = WRONG[name]
    file = tmp_path / "in.jsonl"
    file.write_bytes(b'"first"\n\n' + (line if isinstance(line, bytes) else line.encode()) + b'\n{"prompt": "last"}')
    first, bad, last = prompts.scan(str(file))
    assert (first, last) == ({"prompt": "first"}, {"prompt": "last"})
    assert isinstance(bad, prompts.Bad) and bad.line == 3 and bad.prompt == prompt
    assert bad.error.startswith(f"line 3 of {file} ") and said in bad.error and "\n" not in bad.error
    assert len(bad.error) < 300 + len(str(file))
    assert fields is ... or bad.fields == fields
    with pytest.raises(UserError, match="line 3 of "):  # where all are needed, as in a sweep
        prompts.read(str(file))


def test_what_may_stand_in_a_line(tmp_path):
    file = tmp_path / "in.jsonl"
    kept = {"prompt": "a", "n": 10**4000, "m": -(10**25), "x": [[[1e300, -0.0, 5e-324]]], "y": None, "text": 3}
    mark = b"\xef\xbb\xbf"
    file.write_bytes(mark + json.dumps(kept).encode() + b"\r\n" + mark + b'"b"\r\n  \r\n\t"c" \n' + mark + b"\n")
    assert prompts.read(str(file)) == [kept, {"prompt": "b"}, {"prompt": "c"}]
    file.write_text(json.dumps({"prompt": None, "question": "d"}))
    assert [entry["prompt"] for entry in prompts.read(str(file))] == ["d"]


def test_a_file_of_another_encoding_is_refused_whole(tmp_path):
    file = tmp_path / "in.jsonl"
    for encoding in ("utf-16", "utf-16-le", "latin-1"):
        file.write_bytes('{"prompt": "é"}\n{"prompt": "ü"}\n'.encode(encoding))
        with pytest.raises(UserError):
            prompts.read(str(file))
    file.write_bytes('{"prompt": "é"}\n"ü"\n'.encode("latin-1"))
    with pytest.raises(UserError, match="should be in a file of UTF-8 text"):
        prompts.scan(str(file))


def test_an_empty_prompt_of_the_command_line(tmp_path):
    good, bad = prompts.collect(["a", " "], None)
    assert good == {"prompt": "a"} and isinstance(bad, prompts.Bad) and bad.line is None
    assert bad.error == "--prompt holds an empty prompt: give it some text"
