"""Headers that lie: one sentence, at once, and next to nothing is made of the sizes that they announce."""

import struct
import time
import tracemalloc

import numpy as np
import pytest

from cascades import checkpoints
from cascades.checkpoints import gguf as reader
from cascades.errors import UserError

UINT32, STRING, ARRAY, UINT64, BOOL = 4, 8, 9, 10, 7


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def tensor(name="x", dims=(32,), kind=0, offset=0, rank=None):
    dims_as_said = struct.pack(f"<{len(dims)}Q", *dims)
    return (
        text(name)
        + struct.pack("<I", len(dims) if rank is None else rank)
        + dims_as_said
        + struct.pack("<IQ", kind, offset)
    )


ARCHITECTURE = key("general.architecture", STRING, text("llama"))


def file_of(keys=(ARCHITECTURE,), tensors=(), num_keys=None, num_tensors=None, version=3, data=1024, alignment=32):
    counts = struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head = b"GGUF" + counts + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + bytes(data)


LIES = {
    "keys": file_of(num_keys=2**60),
    "keys_beyond_any_model": file_of(num_keys=70_000, data=1 << 21),
    "tensors": file_of(num_tensors=2**60),
    "tensors_beyond_any_model": file_of(num_tensors=70_000, data=1 << 22),
    "length_of_a_text": file_of([key("a.b", STRING, struct.pack("<Q", 2**63))]),
    "length_of_a_key": file_of([struct.pack("<Q", 2**64 - 1) + b"ab"]),
    "length_of_a_texts_list": file_of([key("a.b", ARRAY, struct.pack("<IQ", STRING, 2**40))]),
    "list_of_texts_beyond_any_model": file_of([key("a.b", ARRAY, struct.pack("<IQ", STRING, 2**22))], data=1 << 25),
    "length_of_numbers": file_of([key("a.b", ARRAY, struct.pack("<IQ", UINT64, 2**40))]),
    "length_of_numbers_overflows": file_of([key("a.b", ARRAY, struct.pack("<IQ", UINT64, 2**63))]),
    "text_in_a_list": file_of(
        [key("a.b", ARRAY, struct.pack("<IQ", STRING, 2) + text("a") + struct.pack("<Q", 2**62))]
    ),
    "list_of_lists": file_of([key("a.b", ARRAY, struct.pack("<IQ", ARRAY, 1))]),
    "kind": file_of([key("a.b", 99, bytes(8))]),
    "kind_of_a_list": file_of([key("a.b", ARRAY, struct.pack("<IQ", 77, 1))]),
    "name_of_two_lines": file_of([key("general\nname", STRING, text("x"))]),
    "name_of_a_tensor": file_of(tensors=[tensor("a\x00b")]),
    "name_too_long": file_of([key("a" * 300, STRING, text("x"))]),
    "key_twice": file_of([ARCHITECTURE, ARCHITECTURE]),
    "no_utf8": file_of([key("tokenizer.ggml.pre", STRING, text(b"\xff\xfe"))]),
    "rank": file_of(tensors=[tensor(rank=10**9)]),
    "rank_5": file_of(tensors=[tensor(dims=(2, 1, 1, 1, 2))]),
    "rank_0": file_of(tensors=[tensor(dims=())]),
    "no_rows": file_of(tensors=[tensor(dims=(32, 0))]),
    "product_overflows_to_0": file_of(tensors=[tensor(dims=(2**32, 2**32))]),
    "product_overflows_to_1": file_of(tensors=[tensor(dims=(2**63 + 1, 2**63 + 1))]),
    "no_whole_block": file_of(tensors=[tensor(dims=(33,), kind=8)]),
    "type": file_of(tensors=[tensor(kind=4)]),
    "offset": file_of(tensors=[tensor(offset=2**63)]),
    "offset_unaligned": file_of(tensors=[tensor(offset=4)]),
    "tensor_twice": file_of(tensors=[tensor(), tensor(offset=128)]),
    "tensors_overlap": file_of(tensors=[tensor("a"), tensor("b", offset=64)]),
    "tensors_at_one_place": file_of(tensors=[tensor("a"), tensor("b")]),
} | {
    f"alignment_{value}": file_of([key("general.alignment", UINT32, struct.pack("<I", value))], [tensor()])
    for value in (0, 3, 24, 2**31, 2**32 - 32)
}
LIES["alignment_text"] = file_of([key("general.alignment", STRING, text("32"))], [tensor()])
LIES["alignment_large"] = file_of([key("general.alignment", UINT64, struct.pack("<Q", 2**40))], [tensor()])


@pytest.mark.parametrize("name", sorted(LIES))
def test_a_header_that_lies(tmp_path, name):
    path = tmp_path / "model.gguf"
    path.write_bytes(LIES[name])
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(UserError) as error:
            reader.read_header(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    sentence = str(error.value)
    assert sentence.startswith(str(path)) and "\n" not in sentence and len(sentence) < 500
    assert time.process_time() - begin < 5 and peak < 1 << 22


def test_the_builder_writes_what_can_be_read(tmp_path):
    """So that what is refused above is refused for its lie."""
    path = tmp_path / "model.gguf"
    aligned = key("general.alignment", UINT32, struct.pack("<I", 64))
    path.write_bytes(file_of([ARCHITECTURE, aligned], [tensor("b", (32, 2), offset=128), tensor("a")], alignment=64))
    header = reader.read_header(path)
    assert header.metadata == {"general.architecture": "llama", "general.alignment": 64}
    assert {name: info.shape for name, info in header.tensors.items()} == {"b": (2, 32), "a": (32,)}
    assert header.tensors["b"].start - header.tensors["a"].start == 128 and header.tensors["a"].start % 64 == 0


def test_words_for_people_need_not_be_utf8(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(file_of([key("general.author", STRING, text(b"Ren\xe9"))]))
    assert reader.read_header(path).metadata["general.author"] == "Ren\ufffd"


@pytest.mark.parametrize(
    ("version", "reason"),
    [(1, "of version 2 or 3, but says 1"), (4, "but says 4"), (3 << 24, "but is a big-endian one")],
)
def test_versions(tmp_path, version, reason):
    path = tmp_path / "model.gguf"
    path.write_bytes(file_of(version=version))
    with pytest.raises(UserError, match=reason):
        reader.read_header(path)


def test_a_folder_and_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read .Is a directory."):
        reader.read_header(tmp_path)
    with pytest.raises(UserError, match="there is no file"):
        reader.read_header(tmp_path / "no.gguf")


def test_sizes_that_the_tensors_do_not_have_are_told_before_anything_is_made(build, write_gguf):
    """A width of 2**31 would be arrays of terabytes."""
    model = build("llama")
    content = write_gguf(model).read_bytes()
    for name, size in {"embedding_length": 64, "feed_forward_length": 96, "block_count": 2}.items():
        entry = key(f"llama.{name}", UINT32, struct.pack("<I", size))
        assert content.count(entry) == 1
        for lie in (4096, 2**31 - 1):
            path = write_gguf(model)
            path.write_bytes(content.replace(entry, key(f"llama.{name}", UINT32, struct.pack("<I", lie))))
            with pytest.raises(UserError, match="misshapen|missing: blk|block_count"):
                checkpoints.load(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_plain_types(build, write_gguf, assert_params, dtype):
    model = build("qwen2")
    name = "blk.0.ffn_up.weight"
    value = np.asarray(model.params["layers"]["0"]["up"]["kernel"]).astype(dtype)
    path = write_gguf(model, tensors={name: value})
    assert reader.read_header(path).tensors[name].kind.name == np.dtype(dtype).name.replace("float", "F")
    assert_params(checkpoints.load(path).params, model.params)
