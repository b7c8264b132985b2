"""GGUF files: header, tensors, dequantisation (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

The header is parsed here: `gguf.GGUFReader` makes several arrays of every string, which takes ten seconds for a
vocabulary of 262,144. Dequantisation is the `gguf` package's.
"""

import functools
import math
import mmap
import pathlib
import re
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from cascades.checkpoints import gguf_configs, gguf_keys, names
from cascades.checkpoints.reader import Reader, Stored, check, empty
from cascades.checkpoints.sources import AnyPath, parts_of
from cascades.errors import UserError
from cascades.models import DecoderConfig

_SCALARS = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
}
# Weights dequantised at a time: the system maps larger temporaries anew each time, at twice the cost.
_CHUNK = 1 << 16
_ALIGNMENT = 32  # bytes, where the file does not say

# The most that a header may hold: far above any model's, and far below what would fill a machine's memory.
_MOST_ENTRIES = 1 << 16
_MOST_STRINGS = 1 << 21
_LONGEST_NAME = 256
_MOST_BYTES = 1 << 26
_MOST_AXES = 4
_LARGEST_ALIGNMENT = 1 << 20
# Other parts of a multimodal file: the image encoder, its projector, the audio encoder.
_OTHER_PARTS = re.compile(r"^(v|mm|a)\.")
_QUANTIZATION_VERSION = gguf_keys.whole(gguf.GGML_QUANT_VERSION, gguf.GGML_QUANT_VERSION)
_PART_COUNT = gguf_keys.whole(0, 99_999)
_POWER_OF_TWO = gguf_keys.Kind(
    f"a power of two up to {_LARGEST_ALIGNMENT}",
    lambda value: type(value) is int and 0 < value <= _LARGEST_ALIGNMENT and value & (value - 1) == 0,
)


class TensorInfo(NamedTuple):
    """A tensor's file, its shape in NumPy's order (rows first), its type, first byte and number of bytes."""

    file: pathlib.Path
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


class Header(NamedTuple):
    """What stands before the weights of a file.

    metadata: every key; scalars and strings as Python's, arrays of strings as lists, of numbers as NumPy arrays.
    tensors: by name, in the file's order.
    keys: where the bytes of the keys begin and end, to copy them.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    keys: tuple[int, int]


def read_header(path: pathlib.Path) -> Header:
    """Reads the header of a file, and checks that its weights are all there.

    Raises:
      UserError: no such file, not GGUF, another version, cut off or damaged, impossible sizes, or an unknown type of
        tensor.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: check the name.") from None
    except OSError as error:
        raise UserError(f"{path} should be a GGUF file, but cannot be read ({error.strerror}): check it.") from None
    except (ValueError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{path} should be a whole GGUF file, but is cut off or damaged ({error}): fetch it again."
        ) from None


def open_reader(path: pathlib.Path, preset: str | None = None) -> Reader:
    """Opens a GGUF file of a known architecture.

    Args:
      path: the file, or the first of a model's parts.
      preset: the architecture where the metadata does not say it.

    Raises:
      UserError: as `read_parts`; an unknown architecture, or tensors that do not fit it or cannot be dequantised.
    """
    header = read_parts(path)
    config = _config(path, header, preset)
    table = names.gguf(config, interleaved=header.metadata["general.architecture"] == "llama")
    shapes = {
        name: info.shape
        for name, info in header.tensors.items()
        if names.is_weight(name) and not _OTHER_PARTS.match(name)
    }
    check(str(path), {tensor.name: tensor.shape for tensor in table.values()}, shapes)
    check_types(header)
    mapped = {info.file: np.asarray(np.memmap(info.file, mode="r")) for info in header.tensors.values()}

    def read(name: str, dtype) -> np.ndarray:
        info = header.tensors[name]
        return _dequantize(info, mapped[info.file], dtype)

    return Reader(label=str(path), config=config, table=table, shapes=shapes, read=read)


def read_parts(path: pathlib.Path) -> Header:
    """The header of a file or, by its first part, of a model that is split over files: it has the tensors of all parts.

    Raises:
      UserError: as `read_header`; not the first part, or parts that are missing or of another model.
    """
    return _join(path, read_header(path))


def read_config(path: pathlib.Path, header: Header, preset: str | None = None) -> DecoderConfig:
    """The architecture of a GGUF file, from its metadata and the shapes of its tensors."""
    return _config(path, _join(path, header), preset)


def _config(path: pathlib.Path, header: Header, preset: str | None) -> DecoderConfig:
    version = header.metadata.get("general.quantization_version", gguf.GGML_QUANT_VERSION)
    quantised = any(gguf.GGML_QUANT_SIZES[info.kind][0] > 1 for info in header.tensors.values())
    if quantised:
        gguf_keys.expect("general.quantization_version", version, _QUANTIZATION_VERSION, str(path))
    factors = None
    if "rope_freqs.weight" in header.tensors:
        info = header.tensors["rope_freqs.weight"]
        check_types(header._replace(tensors={"rope_freqs.weight": info}))
        factors = _dequantize(info, np.asarray(np.memmap(info.file, mode="r")), np.float32)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    return gguf_configs.from_gguf(header.metadata, shapes, str(path), preset=preset, rope_factors=factors)


def _join(path: pathlib.Path, header: Header) -> Header:
    """Adds the tensors of the other parts, `NAME-00002-of-0000N.gguf` and so on, to the header of the first."""
    count = gguf_keys.expect("split.count", header.metadata.get("split.count", 0), _PART_COUNT, str(path))
    if count <= 1:
        return header
    files = parts_of(path)
    if len(files) != count or not all(file.exists() for file in files):
        raise UserError(
            f"{path} is one of {count} parts of a model, but one file was expected, or the first part (-00001-of-"
            f"{count:05}) beside the others: join them with `llama-gguf-split --merge`."
        )
    tensors: dict[str, TensorInfo] = {}
    for i, file in enumerate(files):
        part = header if i == 0 else read_header(file)
        numbers = [part.metadata.get(key) for key in ("split.no", "split.count")]
        in_place = all(isinstance(number, int) for number in numbers) and numbers == [i, count]
        if not in_place or tensors.keys() & part.tensors.keys():
            raise UserError(f"{file} should be part {i + 1} of {count} of {path}, but is another: fetch it again.")
        tensors |= part.tensors
    total = header.metadata.get("split.tensors.count", len(tensors))
    gguf_keys.expect("split.tensors.count", total, gguf_keys.whole(len(tensors), len(tensors)), str(path))
    return header._replace(tensors=tensors)


def copy_metadata(source: pathlib.Path, target: AnyPath) -> None:
    """Writes a GGUF file with all keys of `source`, its tokenizer among them, and no tensors."""
    start, stop = read_header(source).keys
    with source.open("rb") as file:
        version, _, count = struct.unpack_from("<IQQ", file.read(24), 4)
        file.seek(start)
        keys = file.read(stop - start)
    padding = -(24 + len(keys)) % _ALIGNMENT
    target.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, count) + keys + bytes(padding))


class _Cursor:
    """Reads one value after the other. Raises ValueError past the end of the file and for impossible values."""

    def __init__(self, data: mmap.mmap, offset: int):
        self.data = data
        self.offset = offset

    def room(self, count: int, size: int, most: int) -> None:
        """Raises ValueError unless `count` items of at least `size` bytes can follow, and are not more than `most`."""
        if count > most or count * size > len(self.data) - self.offset:
            raise ValueError(f"it has no room for the {count} items that it announces")

    def take(self, form: str) -> int:
        """One number of a `struct` format."""
        self.room(1, struct.calcsize(form), 1)
        (value,) = struct.unpack_from(form, self.data, self.offset)
        self.offset += struct.calcsize(form)
        return value

    def text(self, most: int = _MOST_BYTES, errors: str = "strict") -> str:
        length = self.take("<Q")
        self.room(length, 1, most)
        raw = self.data[self.offset : self.offset + length]
        self.offset += length
        return raw.decode("utf-8", errors)

    def name(self) -> str:
        name = self.text(_LONGEST_NAME)
        if not name.isprintable():
            raise ValueError(f"{name!a:.80} is no name")
        return name

    def texts(self, count: int, errors: str) -> list[str]:
        """`count` times `text`, without its overhead: a vocabulary has hundreds of thousands."""
        self.room(count, 8, _MOST_STRINGS)
        data, offset, unpack, texts = self.data, self.offset, struct.Struct("<Q").unpack_from, []
        for _ in range(count):
            (length,) = unpack(data, offset)
            offset += 8
            if length > len(data) - offset:
                raise ValueError("a text runs past its end")
            texts.append(str(data[offset : offset + length], "utf-8", errors))
            offset += length
        self.offset = offset
        return texts

    def numbers(self, kind: GGUFValueType, count: int) -> np.ndarray:
        dtype = np.dtype(_SCALARS[kind])
        self.room(count, dtype.itemsize, _MOST_BYTES // dtype.itemsize)
        values = np.frombuffer(self.data, dtype=dtype, count=count, offset=self.offset).copy()
        self.offset += values.nbytes
        return values

    def value(self, errors: str) -> Any:
        kind = GGUFValueType(self.take("<I"))
        if kind == GGUFValueType.STRING:
            return self.text(errors=errors)
        if kind != GGUFValueType.ARRAY:
            return self.numbers(kind, 1)[0].item()
        kind, count = GGUFValueType(self.take("<I")), self.take("<Q")
        if kind == GGUFValueType.STRING:
            return self.texts(count, errors)
        if kind == GGUFValueType.ARRAY:
            raise ValueError("arrays of arrays are not used")
        return self.numbers(kind, count)


def _parse(path: pathlib.Path, data: mmap.mmap) -> Header:
    if data[:4] != b"GGUF":
        raise UserError(f"{path} should be a GGUF file, but it begins with {data[:4]!r}: give another file.")
    cursor = _Cursor(data, 4)
    version = cursor.take("<I")
    if version & 0xFFFF == 0:
        raise UserError(
            f"{path} should be a little-endian GGUF file, but is a big-endian one: convert it with "
            "`gguf-convert-endian`."
        )
    if version not in (2, 3):
        raise UserError(f"{path} should be a GGUF file of version 2 or 3, but says {version}: convert it again.")
    num_tensors, num_keys = cursor.take("<Q"), cursor.take("<Q")
    start = cursor.offset
    cursor.room(num_keys, 13, _MOST_ENTRIES)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        key = cursor.name()
        if key in metadata:
            raise ValueError(f"it gives {key:.80} twice")
        # Descriptions for people may hold bytes that are not UTF-8; a token or a template must not change silently.
        metadata[key] = cursor.value("replace" if key.startswith("general.") else "strict")
    stop = cursor.offset
    cursor.room(num_tensors, 32, _MOST_ENTRIES)
    places = {}
    for _ in range(num_tensors):
        name, rank = cursor.name(), cursor.take("<I")
        cursor.room(rank, 8, _MOST_AXES)
        if name in places:
            raise ValueError(f"it holds {name:.80} twice")
        shape = tuple(cursor.take("<Q") for _ in range(rank))[::-1]
        places[name] = (shape, cursor.take("<I"), cursor.take("<Q"))
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    gguf_keys.expect("general.alignment", alignment, _POWER_OF_TWO, str(path))
    base = -(-cursor.offset // alignment) * alignment
    tensors = {name: _info(path, name, place, base) for name, place in places.items()}
    end = max((info.start + info.size for info in tensors.values()), default=0)
    if end > len(data):
        raise UserError(f"{path} should be {end} bytes long, but it is cut off at {len(data)}: fetch it again.")
    _check_places(tensors, base, alignment)
    return Header(metadata, tensors, (start, stop))


def _info(path: pathlib.Path, name: str, place: tuple[tuple[int, ...], int, int], base: int) -> TensorInfo:
    shape, kind, offset = place
    if kind not in gguf.GGML_QUANT_SIZES:
        raise UserError(f"{path} holds {name} in a type ({kind}) that this gguf package does not know: upgrade gguf.")
    quantization = GGMLQuantizationType(kind)
    block, size = gguf.GGML_QUANT_SIZES[quantization]
    count = math.prod(shape)
    if not shape or not count or shape[-1] % block:
        raise UserError(f"{path} holds {name} of shape {list(shape)}, not rows of {block} weights: fetch it again.")
    return TensorInfo(path, shape, quantization, base + offset, count // block * size)


def _check_places(tensors: Mapping[str, TensorInfo], base: int, alignment: int) -> None:
    """Raises ValueError unless tensors begin at multiples of the alignment and do not overlap."""
    end = base
    for name, info in sorted(tensors.items(), key=lambda item: item[1].start):
        if info.start < end or (info.start - base) % alignment:
            raise ValueError(f"{name:.80} begins where it cannot")
        end = info.start + info.size


def check_types(header: Header) -> None:
    """Raises a UserError for the first tensor of the decoder whose type cannot be dequantised."""
    for name, info in header.tensors.items():
        if not _OTHER_PARTS.match(name) and not _is_readable(info.kind):
            raise UserError(
                f"{info.file} cannot be loaded: its {name} is stored as {info.kind.name}, which the gguf package "
                "cannot read: use another quantisation."
            )


@functools.cache
def _is_readable(kind: GGMLQuantizationType) -> bool:
    try:
        _unpack(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _unpack(rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    return rows.view(np.float64) if kind == GGMLQuantizationType.F64 else gguf.dequantize(rows, kind)


def _dequantize(info: TensorInfo, mapped: np.ndarray, dtype) -> np.ndarray:
    """A tensor in `dtype`, converted in chunks.

    A chunk is passed as one row: `gguf` works through its rows sixteen at a time, which is five times slower for narrow
    matrices.
    """
    out = empty(info.shape, dtype)
    flat = out.reshape(-1)
    packed = mapped[info.start : info.start + info.size]
    block, size = gguf.GGML_QUANT_SIZES[info.kind]
    blocks = _CHUNK // block
    for i in range(0, flat.size // block, blocks):
        row = packed[None, i * size : (i + blocks) * size]
        flat[i * block : (i + blocks) * block] = _unpack(row, info.kind)
    return out


def stored(path: pathlib.Path) -> dict[str, Stored]:
    """The shape and type of every tensor, from the headers of all parts."""
    return {name: Stored(info.shape, info.kind.name) for name, info in read_parts(path).tensors.items()}
