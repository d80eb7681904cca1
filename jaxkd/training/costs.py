"""What a compiled program costs a chip, every loop counted as often as it runs.

XLA's own ``cost_analysis`` counts the body of a loop once, and so a scan over 32 layers
as one layer. Here the optimised program's text is read: products of matrices and
convolutions, bytes between HBM and the chip (what XLA keeps in the chip's own memory
does not count), and what collectives send.
"""

import functools
import math
import re
from dataclasses import dataclass, field

from jaxkd.arguments import checked

_SIZES = {"pred": 1, "bf16": 2, "s4": 0.5, "u4": 0.5, "s2": 0.25, "u2": 0.25}
_ARRAY = re.compile(r"([a-z]+[0-9]*[a-z0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_RAGGED = re.compile(r'"is_ragged_dot":true,"num_groups_in_ragged_dot":"(\d+)"')
_FREE = frozenset(
    (
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
        *("after-all", "partition-id", "replica-id", "iota", "copy-done"),
        "opt-barrier",
    )
)
"""Instructions that move nothing."""

_COLLECTIVES = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: float(n - 1),
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1.0,
}
"""Bytes a chip sends in a ring of n, by bytes of the result."""


@checked()
@dataclass
class Costs:
    """A chip's share of one run of a program.

    Attributes:
        flops: of products of matrices and convolutions, and those that kernels state.
        bytes_accessed: to and from HBM.
        collectives: bytes that a chip sends, by the kind of collective.
    """

    flops: float = 0.0
    bytes_accessed: float = 0.0
    collectives: dict[str, float] = field(default_factory=dict)

    def add(self, other: "Costs", times: int = 1) -> None:
        """Add a part that runs some number of times."""
        self.flops += times * other.flops
        self.bytes_accessed += times * other.bytes_accessed
        for kind, size in other.collectives.items():
            self.collectives[kind] = self.collectives.get(kind, 0.0) + times * size


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    op: str
    operands: tuple[str, ...]
    text: str
    root: bool


@checked()
def program_costs(text: str) -> Costs:
    """Return what a compiled program costs each chip.

    Args:
        text: ``compiled.as_text()``, the optimised HLO.

    Raises:
        ValueError: the text has no entry, or a loop whose turns cannot be read from it.
    """
    return _Program(text).costs()


class _Program:
    """The computations of a program by name."""

    def __init__(self, text: str):
        self.computations: dict[str, list[_Instruction]] = {}
        self.entry = ""
        current: list[_Instruction] = []
        for line in text.splitlines():
            if started := _COMPUTATION.match(line):
                current = self.computations[started[2]] = []
                self.entry = started[2] if started[1] else self.entry
            elif found := _INSTRUCTION.match(line):
                current.append(_parse(found))
        if not self.entry:
            raise ValueError("the text has no ENTRY: pass compiled.as_text()")
        self.of = functools.cache(self._of)

    def costs(self) -> Costs:
        return self.of(self.entry)

    def _of(self, name: str) -> Costs:
        """Return the costs of a computation that runs by itself."""
        total, seen = Costs(), set()
        shapes = {i.name: i.shape for i in self.computations[name]}
        for instruction in self.computations[name]:
            if instruction.op == "while":
                total.add(
                    self.of(_called(instruction, "body")), self._turns(instruction)
                )
            elif instruction.op == "conditional":
                branches = re.findall(
                    r"%([\w.\-]+)", instruction.text.split("branch_computations")[-1]
                )
                branches = [b for b in branches if b in self.computations]
                total.add(max(map(self.of, branches), key=lambda c: c.flops))
            elif instruction.op == "call":
                total.add(self.of(_called(instruction, "to_apply")))
            else:
                total.flops += self._flops(instruction, shapes)
                total.bytes_accessed += self._bytes(instruction, shapes)
                self._send(instruction, total, seen)
        return total

    def _turns(self, loop: _Instruction) -> int:
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
            return int(known[1])
        condition = self.computations[_called(loop, "condition")]
        bounds = [
            int(found[1])
            for i in self._inside(condition)
            if i.op == "constant" and (found := re.search(r"constant\((\d+)\)", i.text))
        ]
        if len(bounds) != 1:
            raise ValueError(
                f"the loop {loop.name} has no number of turns that can be read: only "
                "loops of a fixed length (scan, fori_loop) can be counted"
            )
        return bounds[0]

    def _inside(self, instructions: list[_Instruction]) -> list[_Instruction]:
        """Return instructions with those of the computations that fusions call."""
        found = list(instructions)
        for i in instructions:
            if i.op == "fusion":
                found += self._inside(self.computations[_called(i, "calls")])
        return found

    def _flops(self, instruction: _Instruction, shapes: dict[str, str]) -> float:
        if instruction.op == "fusion":
            inner = self.computations[_called(instruction, "calls")]
            known = {i.name: i.shape for i in inner}
            total = sum((self._flops(i, known) for i in inner), 0.0)
            # A ragged product is written as one of all rows with every group's matrix,
            # of which the blocks of rows that are not the group's are skipped.
            groups = _RAGGED.search(instruction.text)
            direct = any(i.op == "convolution" for i in inner)
            return total / int(groups[1]) if groups and direct else total
        if instruction.op == "custom-call":
            stated = re.search(r'cost_estimate":\{"flops":"(\d+)"', instruction.text)
            return float(stated[1]) if stated else 0.0
        if instruction.op not in ("dot", "convolution"):
            return 0.0
        left, right = (_dimensions(shapes[name]) for name in instruction.operands[:2])
        if instruction.op == "convolution":
            return _convolution_flops(instruction, left, right)
        axes = re.search(r"rhs_contracting_dims=\{([\d,]*)\}", instruction.text)
        contracted = [int(a) for a in axes[1].split(",") if a] if axes else []
        result = math.prod(_dimensions(instruction.shape))
        return 2.0 * result * math.prod(right[a] for a in contracted)

    def _bytes(self, instruction: _Instruction, shapes: dict[str, str]) -> float:
        if instruction.op in _FREE or _collective(instruction):
            return 0.0
        if instruction.op == "fusion":
            return self._fusion_bytes(instruction, shapes)
        if instruction.op in ("dynamic-slice", "gather"):
            return 2 * _hbm(instruction.shape)
        if instruction.op == "dynamic-update-slice":
            return 2 * _hbm(shapes.get(instruction.operands[1], ""))
        if instruction.op == "copy-start":
            return sum((_hbm(part) for part in _parts(instruction.shape)[:2]), 0.0)
        arrays = [shapes.get(name, "") for name in instruction.operands]
        return sum((_hbm(array) for array in arrays), _hbm(instruction.shape))

    def _fusion_bytes(self, fusion: _Instruction, shapes: dict[str, str]) -> float:
        """Return a fusion's bytes; of an array that it slices, the slice's."""
        inner = self.computations[_called(fusion, "calls")]
        known = {i.name: i for i in inner}
        total = 0.0
        for index, operand in enumerate(fusion.operands):
            total += self._read(fusion, index, shapes.get(operand, ""))
        root = next(i for i in inner if i.root)
        while root.op == "bitcast":
            root = known[root.operands[0]]
        if root.op == "dynamic-update-slice":
            update = known[root.operands[1]]
            return total + (_size(update.shape) if _hbm(fusion.shape) else 0)
        return total + _hbm(fusion.shape)

    def _read(self, fusion: _Instruction, index: int, where: str) -> float:
        """Return the bytes of HBM that a fusion reads of one of its operands.

        Args:
            fusion: which may hold others.
            index: of the operand.
            where: the operand's shape outside, with its memory.
        """
        if not _hbm(where):
            return 0.0
        inner = self.computations[_called(fusion, "calls")]
        parameter = next(
            i
            for i in inner
            if i.op == "parameter" and i.text.startswith(f"parameter({index})")
        )
        total, names = 0.0, [parameter.name]
        for name in names:
            for user in (i for i in inner if name in i.operands):
                if user.op == "bitcast":
                    names.append(user.name)
                elif user.op in ("dynamic-slice", "gather"):
                    total += _size(user.shape)
                elif user.op == "fusion":
                    places = [i for i, x in enumerate(user.operands) if x == name]
                    total += sum(self._read(user, place, where) for place in places)
                elif user.op != "dynamic-update-slice" or user.operands[0] != name:
                    return _hbm(where)
        return min(total, _hbm(where))

    def _send(self, instruction: _Instruction, total: Costs, seen: set[str]) -> None:
        """Add what a collective sends; one that is cut in pieces counts once."""
        found = [instruction]
        if instruction.op == "fusion":
            found = self._inside(found)
        for i in found:
            kind = _collective(i)
            if not kind or i.op.endswith("-done"):
                continue
            channel = re.search(r"channel_id=(\d+)", i.text)
            if channel and channel[1] in seen:
                continue
            seen.add(channel[1] if channel else i.name)
            parts = _parts(i.shape)
            size = _size(parts[-1]) if i.op.endswith("-start") else _size(i.shape)
            sent = _COLLECTIVES[kind](max(_group(i.text), 1)) * size
            total.add(Costs(collectives={kind: sent}))


def _parse(found: re.Match) -> _Instruction:
    rest = re.sub(r"/\*[^*]*\*/", "", found[3])
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    op, _, arguments = rest.partition("(")
    inside = arguments[: _closing("(" + arguments) - 2]
    operands = tuple(re.findall(r"%([\w.\-]+)", inside))
    return _Instruction(found[2], shape, op, operands, rest, bool(found[1]))


def _closing(text: str) -> int:
    """Return the place after the bracket that closes the first one."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return i + 1
    return len(text)


def _convolution_flops(
    convolution: _Instruction, inputs: list[int], weights: list[int]
) -> float:
    """Count a convolution's products; those with padding are none.

    TPU programs have products of matrices as convolutions, mostly of padding.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.text)
    if labels is None:
        raise ValueError(f"{convolution.name} has no dim_labels")
    result = _dimensions(convolution.shape)
    total = 2.0 * result[labels[3].index("b")] * result[labels[3].index("f")]
    total *= weights[labels[2].index("i")]
    window = re.search(r"window=\{([^}]*)\}", convolution.text)
    fields = dict(part.split("=") for part in window[1].split()) if window else {}
    for axis in sorted(set(labels[2]) - {"i", "o"}):

        def of(name: str, default: str, axis=int(axis)) -> str:
            return fields[name].split("x")[axis] if name in fields else default

        step, spread = int(of("stride", "1")), int(of("lhs_dilate", "1"))
        apart, before = int(of("rhs_dilate", "1")), int(of("pad", "0_0").split("_")[0])
        length = (inputs[labels[1].index(axis)] - 1) * spread + 1
        taps = [
            start * step + tap * apart - before
            for start in range(result[labels[3].index(axis)])
            for tap in range(weights[labels[2].index(axis)])
        ]
        total *= sum(0 <= at < length and at % spread == 0 for at in taps)
    return total


def _called(instruction: _Instruction, name: str) -> str:
    found = re.search(rf"{name}=%?([\w.\-]+)", instruction.text)
    if found is None:
        raise ValueError(f"{instruction.name} names no {name}")
    return found[1]


def _collective(instruction: _Instruction) -> str:
    kind = instruction.op.removesuffix("-start").removesuffix("-done")
    return kind if kind in _COLLECTIVES else ""


def _group(text: str) -> int:
    """Return how many chips take part in each instance of a collective."""
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]", text):
        return int(iota[2])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed[1].split(","))
    return 2


def _parts(shape: str) -> list[str]:
    return [found[0] for found in _ARRAY.finditer(shape)]


def _dimensions(shape: str) -> list[int]:
    found = _ARRAY.search(shape)
    return [int(size) for size in found[2].split(",") if size] if found else []


def _size(shape: str) -> float:
    """Return the bytes of an array, or of a tuple's."""
    return sum((_bytes_of(found) for found in _ARRAY.finditer(shape)), 0.0)


def _hbm(shape: str) -> float:
    """Return the bytes of an array that lie in HBM; ``S(1)`` is the chip's own."""
    outside = (
        _bytes_of(found)
        for found in _ARRAY.finditer(shape)
        if not re.search(r"S\([1-9]\)", found[3] or "")
    )
    return sum(outside, 0.0)


def _bytes_of(found: re.Match) -> float:
    kind, sizes = found[1], [int(size) for size in found[2].split(",") if size]
    if kind not in _SIZES:
        digits = re.search(r"\d+", kind)
        return math.prod(sizes) * int(digits[0]) / 8 if digits else 0.0
    return float(math.prod(sizes) * _SIZES[kind])
