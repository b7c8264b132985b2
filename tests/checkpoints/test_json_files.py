import pytest

from cascades.checkpoints.json_files import read_object
from cascades.errors import UserError


def test_an_object_comes_back(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        '{"a": {"b": [1, 2.5, null, true]}, "c": "ä\\ud83d\\ude00", "big": 1e300, "c2": 1000000000000000000000}'
    )
    assert read_object(path) == {
        "a": {"b": [1, 2.5, None, True]}, "c": "ä😀", "big": 1e300, "c2": 10**21
    }  # fmt: skip


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "should be JSON"),
        (b"{", "should be JSON"),
        (b"[]", "should hold a JSON object, but holds a list"),
        (b"3", "holds a int"),
        (b"null", "holds a NoneType"),
        (b'{"a": NaN}', "NaN is no JSON"),
        (b'{"a": -Infinity}', "-Infinity is no JSON"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": 1' + 5000 * b"0" + b"}", "should be JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' stands twice"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        (b'{"a": "\xff"}', "should be JSON"),
        (b"\x00\x01\x02", "should be JSON"),
        (b'{"a": ' + 200_000 * b"[" + 200_000 * b"]" + b"}", "nested too deeply"),
        (100_000 * b'{"a":', "nested too deeply"),
    ],
)
def test_what_is_no_object_is_one_sentence_that_names_the_file(tmp_path, content, named):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=named) as caught:
        read_object(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(UserError, match="should be a JSON file, but there is no such file"):
        read_object(tmp_path)
