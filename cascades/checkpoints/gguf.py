"""GGUF files: header, tensors, dequantisation (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

The header is parsed here, as `gguf.GGUFReader` makes several arrays of every string: ten seconds for a vocabulary of
262,144. Dequantisation is the `gguf` package's.
"""

import mmap
import pathlib
import struct
from typing import Any, NamedTuple

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from cascades.checkpoints import gguf_configs, names
from cascades.checkpoints.reader import Reader, empty
from cascades.checkpoints.sources import AnyPath
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
# Weights dequantised at a time: larger temporaries are mapped from the system anew each time, at twice the cost.
_CHUNK = 1 << 16
_ALIGNMENT = 32


class TensorInfo(NamedTuple):
    """Where a tensor lies: NumPy's shape (rows first), its type, first byte and number of bytes in the file."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


class Header(NamedTuple):
    """A file without its weights.

    metadata: every key; scalars and strings as Python's, arrays of strings as lists, of numbers as NumPy arrays.
    tensors: by name, in the file's order.
    keys: first and last byte of the keys, for a copy of them.
    """

    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    keys: tuple[int, int]


def read_header(path: pathlib.Path) -> Header:
    """Reads what stands before the weights, and checks that the weights are all there.

    Raises:
      UserError: no such file, not GGUF, another version, cut off, or a tensor type that is not known.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(path, data)
    except FileNotFoundError:
        raise UserError(f"there is no file {path}: check the name.") from None
    except (ValueError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} should be a whole GGUF file, but is cut off or damaged: fetch it again.") from None


def open_reader(path: pathlib.Path, preset: str | None = None) -> Reader:
    """Opens a GGUF file of a known architecture; `preset` names the shape where the metadata leaves it open."""
    header = read_header(path)
    config = read_config(path, header, preset)
    mapped = np.asarray(np.memmap(path, mode="r"))

    def read(name: str, dtype) -> np.ndarray:
        return _dequantize(name, header.tensors[name], mapped, dtype)

    return Reader(
        label=str(path),
        config=config,
        table=names.gguf(config, interleaved=header.metadata["general.architecture"] == "llama"),
        shapes={name: info.shape for name, info in header.tensors.items() if names.is_weight(name)},
        read=read,
    )


def read_config(path: pathlib.Path, header: Header, preset: str | None = None) -> DecoderConfig:
    """The architecture of a GGUF file, from its metadata and the shapes of its tensors."""
    if header.metadata.get("split.count", 0) > 1:
        raise UserError(
            f"{path} is one of {header.metadata['split.count']} parts of a model, but one file was expected: join them "
            "with `llama-gguf-split --merge`."
        )
    factors = None
    if "rope_freqs.weight" in header.tensors:
        info = header.tensors["rope_freqs.weight"]
        factors = _dequantize("rope_freqs.weight", info, np.asarray(np.memmap(path, mode="r")), np.float32)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    return gguf_configs.from_gguf(header.metadata, shapes, str(path), preset=preset, rope_factors=factors)


def copy_metadata(source: pathlib.Path, target: AnyPath) -> None:
    """Writes a GGUF file with all keys of `source`, its tokenizer among them, and no tensor."""
    start, stop = read_header(source).keys
    with source.open("rb") as file:
        version, _, count = struct.unpack_from("<IQQ", file.read(24), 4)
        file.seek(start)
        keys = file.read(stop - start)
    padding = -(24 + len(keys)) % _ALIGNMENT
    target.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, count) + keys + bytes(padding))


class _Cursor:
    """Reads values one behind the other; past the end it raises ValueError or struct.error."""

    def __init__(self, data: mmap.mmap, offset: int):
        self.data = data
        self.offset = offset

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.offset)
        self.offset += struct.calcsize(form)
        return value

    def text(self) -> str:
        length = self.take("<Q")
        raw = self.data[self.offset : self.offset + length]
        if len(raw) < length:
            raise ValueError("text runs past the end")
        self.offset += length
        return raw.decode("utf-8", "replace")

    def numbers(self, kind: GGUFValueType, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype=_SCALARS[kind], count=count, offset=self.offset).copy()
        self.offset += values.nbytes
        return values

    def value(self) -> Any:
        kind = GGUFValueType(self.take("<I"))
        if kind == GGUFValueType.STRING:
            return self.text()
        if kind != GGUFValueType.ARRAY:
            return self.numbers(kind, 1)[0].item()
        kind, count = GGUFValueType(self.take("<I")), self.take("<Q")
        if kind == GGUFValueType.STRING:
            return [self.text() for _ in range(count)]
        if kind == GGUFValueType.ARRAY:
            raise ValueError("arrays of arrays are not used")
        return self.numbers(kind, count)


def _parse(path: pathlib.Path, data: mmap.mmap) -> Header:
    if data[:4] != b"GGUF":
        raise UserError(f"{path} should be a GGUF file, but it begins with {data[:4]!r}: give another file.")
    cursor = _Cursor(data, 4)
    version = cursor.take("<I")
    if version not in (2, 3):
        raise UserError(f"{path} should be a GGUF file of version 2 or 3, but says {version}: convert it again.")
    num_tensors, num_keys = cursor.take("<Q"), cursor.take("<Q")
    start = cursor.offset
    metadata = {cursor.text(): cursor.value() for _ in range(num_keys)}
    stop = cursor.offset
    places = {}
    for _ in range(num_tensors):
        name, rank = cursor.text(), cursor.take("<I")
        shape = tuple(cursor.take("<Q") for _ in range(rank))[::-1]
        places[name] = (shape, cursor.take("<I"), cursor.take("<Q"))
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    base = -(-cursor.offset // alignment) * alignment
    tensors = {name: _info(path, name, place, base) for name, place in places.items()}
    end = max((info.start + info.size for info in tensors.values()), default=0)
    if end > len(data):
        raise UserError(f"{path} should be {end} bytes long, but it is cut off at {len(data)}: fetch it again.")
    return Header(metadata, tensors, (start, stop))


def _info(path: pathlib.Path, name: str, place: tuple[tuple[int, ...], int, int], base: int) -> TensorInfo:
    shape, kind, offset = place
    if kind not in gguf.GGML_QUANT_SIZES:
        raise UserError(f"{path} holds {name} in a type ({kind}) that this gguf package does not know: upgrade gguf.")
    quantization = GGMLQuantizationType(kind)
    block, size = gguf.GGML_QUANT_SIZES[quantization]
    count = int(np.prod(shape, dtype=np.int64))
    if not shape or shape[-1] % block:
        raise UserError(f"{path} holds {name} of shape {list(shape)}, not rows of {block} weights: fetch it again.")
    return TensorInfo(shape, quantization, base + offset, count // block * size)


def _dequantize(name: str, info: TensorInfo, mapped: np.ndarray, dtype) -> np.ndarray:
    """A chunk at a time, straight into the final dtype.

    A chunk goes in as one row: `gguf` takes its rows by sixteens, which for narrow matrices is five times slower.
    """
    out = empty(info.shape, dtype)
    flat = out.reshape(-1)
    packed = mapped[info.start : info.start + info.size]
    block, size = gguf.GGML_QUANT_SIZES[info.kind]
    blocks = _CHUNK // block
    try:
        for i in range(0, flat.size // block, blocks):
            row = packed[None, i * size : (i + blocks) * size]
            flat[i * block : (i + blocks) * block] = gguf.dequantize(row, info.kind)
    except NotImplementedError:
        raise UserError(
            f"{name} is stored as {info.kind.name}, which the gguf package cannot read: use another quantisation."
        ) from None
    return out
