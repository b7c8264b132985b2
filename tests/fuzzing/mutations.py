"""Changes to JSON values and to bytes, drawn from a `random.Random`: what damaged, foreign and hostile files hold."""

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

Place = tuple[Any, Any]  # a container and a key or an index in it

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    2**31,
    2**63,
    2**64 + 1,
    10**400,
    -(2**40),
    "",
    " ",
    "0",
    "8",
    "true",
    "none",
    "default",
    "gelu",
    "yarn",
    "auto",
    "\ud800",
    "\x00",
    "é😀你",
    "a" * 70_000,
    [],
    [None],
    [0],
    [[]],
    [1, "a", None],
    {},
    {"": ""},
    {"a": {"b": [1]}},
    {"content": None},
    {"content": 5},
)


def mutate_json(rng: random.Random, value: Any) -> Any:
    """The value with one place in it dropped, changed, renamed, doubled, moved or nested deeply; now and then all."""
    value = json.loads(json.dumps(value))
    places = list(_places(value))
    if not places or rng.random() < 0.02:
        return rng.choice(_VALUES)
    container, key = rng.choice(places)
    old = container[key]
    how = rng.choice(("drop", "value", "value", "value", "near", "near", "rename", "swap", "deep", "double", "add"))
    if how == "drop":
        del container[key]
    elif how == "value":
        container[key] = rng.choice(_VALUES)
    elif how == "near":
        container[key] = _near(rng, old)
    elif how == "rename" and isinstance(container, dict):
        container[_misspelt(rng, key)] = container.pop(key)
    elif how == "swap":
        other, at = rng.choice(places)
        taken = json.loads(json.dumps(old))
        container[key] = json.loads(json.dumps(other[at])) if _holds(other, at) else None
        if _holds(other, at):
            other[at] = taken
    elif how == "deep":
        for _ in range(rng.choice((3, 100, 900))):
            old = rng.choice(([old], {"a": old}))
        container[key] = old
    elif how == "double" and isinstance(container, list):
        container.insert(key, old)
    elif isinstance(container, dict):
        container[rng.choice(("scale", "type", "rope_type", "é", "", "new_attention_scale"))] = rng.choice(_VALUES)
    return value


def dump(rng: random.Random, value: Any) -> bytes:
    """JSON, now and then as no library writes it: a key twice, a comment, a byte order mark, UTF-16, damaged, deep."""
    text = json.dumps(value)
    how = rng.random()
    if how < 0.04 and text[:1] == "{" and len(text) > 2:
        text = '{"' + rng.choice(("model_type", "rope_theta", "weight_map", "eos_token")) + '": 3, ' + text[1:]
    elif how < 0.06:
        text = text.replace(":", ": /* note */", 1)
    elif how < 0.08:
        text = "\ufeff" + text
    elif how < 0.10:
        return text.encode("utf-16")
    elif how < 0.14:
        return mutate_bytes(rng, text.encode())
    elif how < 0.15:
        text = "[" * 100_000
    return text.encode()


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """The bytes with a few flipped, cut out, put in, doubled, or the end missing."""
    result = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        at = rng.randrange(len(result) + 1) if rng.random() < 0.5 else rng.randrange(min(len(result), 64) + 1)
        how = rng.choice(("flip", "set", "cut", "insert", "truncate", "double"))
        if how in ("flip", "set") and at < len(result):
            result[at] = result[at] ^ (1 << rng.randrange(8)) if how == "flip" else rng.choice((0, 1, 127, 128, 255))
        elif how == "cut":
            del result[at : at + rng.choice((1, 4, 8, 64))]
        elif how == "insert":
            result[at:at] = rng.choice((b"\0", b"\xff" * 8, b"{", b'"', rng.randbytes(16)))
        elif how == "truncate":
            del result[at:]
        elif how == "double":
            result[at:at] = result[at : at + 16]
    return bytes(result)


def lie(rng: random.Random, data: bytes, fields: list[tuple[int, str]]) -> bytes:
    """The bytes with one or two of the numbers in `fields` (offset, `struct` format) replaced by ones that lie."""
    result = bytearray(data)
    for offset, form in rng.sample(fields, k=min(len(fields), rng.choice((1, 1, 2)))):
        top = 2 ** (8 * struct.calcsize(form)) - 1
        (old,) = struct.unpack_from(form, data, offset)
        values = (
            0,
            1,
            top,
            top // 2,
            top // 2 + 1,
            2**31,
            2**33,
            old + 1,
            old * 2,
            max(old - 1, 0),
            rng.randrange(top),
        )
        struct.pack_into(form, result, offset, rng.choice(values) & top)
    return bytes(result)


def _places(value: Any) -> Iterator[Place]:
    """Every place in a tree of lists and objects; of a long list a few."""
    if isinstance(value, dict):
        keys: list[Any] = list(value)
    elif isinstance(value, list):
        keys = list(range(len(value)))
    else:
        return
    step = max(1, len(keys) // 40)
    for key in keys[::step]:
        yield value, key
        yield from _places(value[key])


def _holds(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def _near(rng: random.Random, old: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(old, bool):
        return not old
    if isinstance(old, int | float):
        return rng.choice((old + 1, old - 1, -old, old * 2, old / 2, float(old), str(old), [old], old * 10**6, 0))
    if isinstance(old, str):
        other = old.swapcase()
        return rng.choice((old + "x", old[:-1], other, old * 2, [old], {"content": old}, f" {old}", old + "\n", 7))
    if isinstance(old, list):
        return rng.choice((old[:-1], old + old, old[::-1], dict(enumerate(map(str, old))), old + [None], [old]))
    if isinstance(old, dict):
        return rng.choice((list(old), [old], json.dumps(old), {}, {key: None for key in old}))
    return rng.choice((0, "", [], {}, False))


def _misspelt(rng: random.Random, name: str) -> str:
    return rng.choice((name + "s", name[:-1], name.upper(), f"_{name}", name.replace("_", "-"), f"text_{name}", "é"))
