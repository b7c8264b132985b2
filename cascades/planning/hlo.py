"""What a compiled TPU program moves, read from its text.

The compiler's own count of bytes takes an in-place update of a cache for a read and a write of all of it, and a lookup
of a few rows for a read of the whole embedding. Here every instruction counts for what it touches: HBM only, since the
text says which buffers live on the chip (memory space `S(1)` and so on).
"""

import math
import re
from collections import Counter
from typing import NamedTuple

_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_SIZES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "s8": 1, "u8": 1, "pred": 1, "s64": 8}
_TYPE = rf"(?:{'|'.join(_SIZES)})\[[\d,]*\]"
_SHAPE = re.compile(rf"({_TYPE})(?:\{{([^}}]*)\}})?")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%(\S+) = (.*?) ([a-z][a-z0-9-]*)\((.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(")
# They name or regroup what is there, or wait for what another instruction has begun.
_FREE = {
    *("parameter", "constant", "get-tuple-element", "tuple", "bitcast", "iota", "partition-id", "replica-id"),
    *("after-all", "while", "conditional", "call"),
}
_SAME = ("bitcast", "reshape", "transpose", "copy")
_PARTS = ("gather", "dynamic-slice", "slice")
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # which operand is the update


class Shape(NamedTuple):
    """Bytes of an array, and whether it lives in HBM."""

    size: int
    far: bool


class Instruction(NamedTuple):
    """One line of a computation. shapes: of its results. rest: its attributes."""

    name: str
    shapes: list[Shape]
    kind: str
    operands: list[str]
    rest: str
    root: bool


Computations = dict[str, dict[str, Instruction]]


class Program(NamedTuple):
    """A compiled program. entry: where it begins. computations: by name, their instructions by name in their order."""

    entry: str
    computations: Computations


def collectives(program: Program, within: str = "") -> dict[str, tuple[int, int]]:
    """Returns count and bytes of results of each kind of collective: each loop's body once, the larger branch.

    within: see `traffic`.
    """
    counts, sizes = _sent(program.entry, program.computations, _scope(within))
    return {kind: (counts[kind], sizes[kind]) for kind in sorted(counts)}


def traffic(program: Program, within: str = "") -> int:
    """Returns the bytes that a program reads from and writes to HBM on one chip, the body of each loop once.

    within: count only what was traced under a `jax.named_scope` of this name.
    """
    return _moved(program.entry, program.computations, _scope(within))


def _scope(within: str) -> str:
    return f"/{within}/" if within else ""


def parse(text: str) -> Program:
    """Reads the text of a compiled program."""
    computations: Computations = {}
    entry = current = ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            current = head[2]
            entry = current if head[1] else entry
            computations[current] = {}
        elif current and (parts := _INSTRUCTION.match(line)):
            root, name, result, kind, rest = parts.groups()
            inside, after = _arguments(rest)
            operands = re.findall(r"%([^\s,()]+)", inside)
            computations[current][name] = Instruction(name, _shapes(result), kind, operands, after, bool(root))
    return Program(entry, computations)


def _sent(name: str, computations: Computations, scope: str) -> tuple[Counter[str], Counter[str]]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for line in computations[name].values():
        kind = line.kind.removesuffix("-start")
        inner = [_sent(each, computations, scope) for each in _inner(line)]
        if line.kind == "conditional":
            inner = [max(inner, key=lambda each: each[0].total())] if inner else []
        for count, size in inner:
            counts += count
            sizes += size
        if kind in _COLLECTIVES and scope in line.rest:
            counts[kind] += 1
            sizes[kind] += line.shapes[-1].size if line.kind != kind else sum(shape.size for shape in line.shapes)
    return counts, sizes


def _inner(line: Instruction) -> list[str]:
    """The computations that an instruction runs, but for what it fuses or applies to elements."""
    if line.kind == "conditional":
        return _called(line, ("branch_computations", "true_computation", "false_computation"))
    return _called(line, ("body", "to_apply")) if line.kind in ("while", "call") else []


def _moved(name: str, computations: Computations, scope: str) -> int:
    lines = computations[name]
    total = 0
    for line in lines.values():
        operands = [lines[each].shapes for each in line.operands if each in lines]
        if inner := [_moved(each, computations, scope) for each in _inner(line)]:
            total += max(inner) if line.kind == "conditional" else sum(inner)
        elif (
            line.kind in _FREE
            or scope not in line.rest
            or line.kind.endswith("-done")
            or 'custom_call_target="ConcatBitcast"' in line.rest
        ):
            continue
        elif line.kind == "copy-start":  # its results are the target, the source and a flag
            target, source = line.shapes[:2]
            total += target.size * (target.far + source.far)
        elif line.kind == "slice-start":  # the source, the target and a flag
            source, target = line.shapes[:2]
            total += target.size * (target.far + source.far)
        elif line.kind == "fusion":
            total += _fusion(line, operands, computations[_called(line, ("calls",))[0]])
        elif line.kind in _UPDATES:
            total += 2 * sum(shape.size for shape in operands[_UPDATES[line.kind]] if line.shapes[0].far)
        elif line.kind in _PARTS:
            total += line.shapes[0].size * (line.shapes[0].far + operands[0][0].far)
        else:
            results = line.shapes[-1:] if line.kind.endswith("-start") else _new(line)
            total += sum(shape.size for shape in results if shape.far)
            total += sum(shape.size for shapes in operands for shape in shapes if shape.far)
    return total


def _new(line: Instruction) -> list[Shape]:
    """The results of an instruction but for those that it updates in place: a kernel writes a few tiles of them."""
    aliasing = re.search(r"output_to_operand_aliasing=\{(.*?\))\}", line.rest)
    aliased = {int(number) for number in re.findall(r"\{(\d+)\}: \(", aliasing[1])} if aliasing else set()
    return [shape for number, shape in enumerate(line.shapes) if number not in aliased]


def _fusion(line: Instruction, operands: list[list[Shape]], inside: dict[str, Instruction]) -> int:
    """Reads each operand once, or the parts that are taken of it; writes each result once, or what is updated of it."""
    total = 0
    parameters = {int(each.rest): each for each in inside.values() if each.kind == "parameter"}
    for number, shapes in enumerate(operands):
        if shapes[0].far:
            total += _read(parameters[number], inside, shapes[0].size)
    root = next(each for each in inside.values() if each.root)
    roots = [inside[each] for each in root.operands] if root.kind == "tuple" else [root]
    for shape, source in zip(line.shapes, roots, strict=False):
        if shape.far:
            source = _behind(source, inside)
            at = _UPDATES.get(source.kind)
            total += shape.size if at is None else inside[source.operands[at]].shapes[0].size
    return total


def _read(parameter: Instruction, inside: dict[str, Instruction], size: int) -> int:
    """Bytes that are read of a parameter: all of it, or the parts that are taken; none where it is updated in place."""
    uses = [each for each in inside.values() if parameter.name in each.operands]
    if len(uses) == 1 and uses[0].kind in _SAME:
        return _read(uses[0], inside, size)
    total = 0
    for use in uses:
        first = use.operands.index(parameter.name) == 0
        if first and use.kind in _PARTS:
            total += use.shapes[0].size
        elif not (first and use.kind in _UPDATES):
            return size
    return min(total, size)


def _behind(line: Instruction, inside: dict[str, Instruction]) -> Instruction:
    while line.kind in _SAME and line.operands and line.operands[0] in inside:
        line = inside[line.operands[0]]
    return line


def _called(line: Instruction, attributes: tuple[str, ...]) -> list[str]:
    lists = re.findall(rf"(?:{'|'.join(attributes)})=(\{{[^}}]*\}}|%[^\s,]+)", line.rest)
    return [name for each in lists for name in re.findall(r"%([^\s,{}]+)", each)]


def _arguments(rest: str) -> tuple[str, str]:
    """Splits what follows an opening parenthesis at the closing one; a parameter's number counts as its attributes."""
    depth = 1
    for at, character in enumerate(rest):
        depth += (character == "(") - (character == ")")
        if not depth:
            return rest[:at], rest[:at] if rest[:at].isdecimal() else rest[at + 1 :]
    return rest, ""


def _shapes(result: str) -> list[Shape]:
    shapes = []
    for kind, layout in _SHAPE.findall(result):
        dtype, _, dims = kind.rstrip("]").partition("[")
        size = _SIZES[dtype] * math.prod(int(dim) for dim in dims.split(",") if dim)
        shapes.append(Shape(size, not re.search(r"S\(\d+\)", layout)))
    return shapes
