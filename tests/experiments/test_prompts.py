"""Prompts from files: what is understood. (tests/test_bad_input.py has what is refused.)"""

import json

import pytest

from cascades.errors import UserError
from cascades.experiments import prompts


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
