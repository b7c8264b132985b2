"""Append-only results: whole lines stay, torn ones do no harm."""

import json
import math

import pytest

from cascades.errors import UserError
from cascades.generation import records

HARD = [{"text": "a\nb\u2028c\x85d"}, {"text": "你好 😀"}, {"text": "\ud800"}, {"n": 1}]


def write(path, entries):
    with records.open_append(str(path)) as file:
        for entry in entries:
            records.append(file, entry)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "out.jsonl"
    assert records.load(str(path)) == []
    write(path, HARD)
    assert records.load(str(path)) == HARD
    assert path.read_bytes().count(b"\n") == len(HARD)


@pytest.mark.parametrize("torn", [b'{"text": "a', b'{"text": "\xe4\xbd', b"[1, 2", b'"text"'])
def test_a_torn_last_line(tmp_path, torn):
    path = tmp_path / "out.jsonl"
    write(path, HARD)
    path.write_bytes(path.read_bytes() + torn)
    assert records.load(str(path)) == HARD
    write(path, [{"n": 2}])
    assert records.load(str(path)) == [*HARD, {"n": 2}]


def test_a_line_is_with_the_system_before_the_next_begins(tmp_path):
    path = tmp_path / "out.jsonl"
    with records.open_append(str(path)) as file:
        records.append(file, {"n": 1})
        assert records.load(str(path)) == [{"n": 1}]


def test_a_full_disk_is_one_sentence():
    with records.open_append("/dev/full") as file, pytest.raises(UserError, match="could not be written to /dev/full"):
        records.append(file, {"n": 1})


def test_the_check_touches_nothing(tmp_path):
    records.check_writable(str(tmp_path / "new.jsonl"))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old.jsonl").write_text("torn")
    records.check_writable(str(tmp_path / "old.jsonl"))
    assert (tmp_path / "old.jsonl").read_text() == "torn"
    for path in (tmp_path, tmp_path / "no" / "out.jsonl", tmp_path / "old.jsonl" / "out.jsonl"):
        with pytest.raises(UserError, match="results should go to a file"):
            records.check_writable(str(path))


def test_what_json_does_not_know_becomes_null(tmp_path):
    path = tmp_path / "out.jsonl"
    write(path, [{"a": math.nan, "b": [1.5, -math.inf, {"c": (math.inf, 10**400)}], "d": "NaN"}])
    line = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} was written"))
    assert line == {"a": None, "b": [1.5, None, {"c": [None, 10**400]}], "d": "NaN"}


def test_a_line_that_python_cannot_read_is_passed_over(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"n": ' + "9" * 5000 + "}\n" + "[" * 100_000 + '\n{"n": 1}\n')
    assert records.load(str(path)) == [{"n": 1}]
