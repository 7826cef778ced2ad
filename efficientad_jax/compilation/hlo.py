"""Reads the compiler's result as text: which operations a program launches, and from where.

XLA prints a compiled program as computations of one instruction per line. Most lines launch
something on the device: a kernel, a call of a library, a copy or a loop.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

# Instructions that launch nothing: they name values, or wait for what was launched before.
_NO_LAUNCH = frozenset(
    (
        "add-dependency",
        "after-all",
        "bitcast",
        "constant",
        "get-tuple-element",
        "opt-barrier",
        "parameter",
        "partition-id",
        "replica-id",
        "tuple",
    )
)
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?([%\w.\-, ]+)\}?")
_BODY = re.compile(r"body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
# Names that JAX and Flax add: transformations, and classes and their methods.
_WRAPPER = re.compile(
    r"(jit|pjit|jvp|while|body|cond|closed_call|shard_map|checkpoint|eval_jaxpr)(\(.*\))?"
    r"|(PatchDescriptionNetwork|Autoencoder)\.\w+|PatchDescriptionNetwork"
)
_COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-broadcast",
    "collective-permute",
    "reduce-scatter",
)


class Instruction(NamedTuple):
    """One line of a computation.

    Attributes:
      name: unique in the program.
      shape: of its result, with dtype and layout.
      opcode: XLA's name of the operation.
      operands: names of the instructions whose results it takes.
      rest: the attributes, as text.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    rest: str

    @property
    def kind(self) -> str:
        """A word or two for the work that it launches; '' if there is none."""
        if self.opcode in _NO_LAUNCH or self.opcode.endswith(("-done", "-update")):
            return ""
        opcode = self.opcode.removesuffix("-start")
        if opcode in _COLLECTIVES:
            return "collective"
        if opcode in ("custom-call", "fusion"):
            return self._kind_of_call()
        return opcode

    def _kind_of_call(self) -> str:
        match = _TARGET.search(self.rest)
        target = match[1] if match else ""
        if "cudnn$convBackward" in target:
            return "backward convolution"
        if "cudnn$conv" in target:
            return "convolution"
        if "$gemm" in self.rest or "_gemm" in self.rest or "$lt$matmul" in self.rest:
            return "matrix product"
        return "custom call" if self.opcode == "custom-call" else "fusion"

    @property
    def cycles(self) -> int:
        """The compiler's estimate on a TPU, 0 if it gives none."""
        match = _CYCLES.search(self.rest)
        return int(match[1]) if match else 0

    @property
    def op_name(self) -> str:
        """Where in the Python program it comes from, '' if the compiler added it."""
        match = _OP_NAME.search(self.rest)
        return match[1].replace("\\", "") if match else ""

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that it calls."""
        names = ",".join(match[1] for match in _CALLED.finditer(self.rest))
        return tuple(name.strip(" %") for name in names.split(",") if name.strip(" %"))

    @property
    def trips(self) -> int:
        """How often a loop is repeated, 1 if the compiler does not know it."""
        match = _TRIPS.search(self.rest)
        return int(match[1]) if match else 1


class Launch(NamedTuple):
    """An instruction that launches something, and how often it does so."""

    instruction: Instruction
    times: int


class CompiledProgram:
    """A compiled program.

    Attributes:
      computations: their instructions, by name of the computation.
      entry: name of the computation that is called first.
    """

    def __init__(self, text: str) -> None:
        """Reads the text of `compiled.as_text()`."""
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        name = ""
        for line in text.splitlines():
            if match := _COMPUTATION.match(line):
                name = match[2]
                self.computations[name] = []
                if match[1]:
                    self.entry = name
            elif match := _INSTRUCTION.match(line):
                self.computations[name].append(_parse(match[2], line[match.end() :]))

    def launches(self, computation: str = "", times: int = 1) -> Iterator[Launch]:
        """Everything that a computation launches, by default the whole program's.

        Loops give what their body launches, as often as the loop is repeated.
        """
        for instruction in self.computations[computation or self.entry]:
            if instruction.opcode == "while":
                body = _BODY.search(instruction.rest)
                if body:
                    yield from self.launches(body[1], times * instruction.trips)
            elif instruction.opcode in ("call", "conditional") or (
                instruction.opcode == "async-start" and not instruction.kind
            ):
                for called in instruction.called:
                    yield from self.launches(called, times)
            elif instruction.kind:
                yield Launch(instruction, times)

    @cached_property
    def steps_body(self) -> str:
        """The body of the loop that launches most: that over the steps of a training."""
        bodies = [
            body[1]
            for instructions in self.computations.values()
            for instruction in instructions
            if instruction.opcode == "while" and (body := _BODY.search(instruction.rest))
        ]
        if not bodies:
            raise ValueError("the program has no loop, expected one over the steps")
        return max(bodies, key=lambda body: sum(times for _, times in self.launches(body)))

    def op_name(self, instruction: Instruction) -> str:
        """Where an instruction comes from; of a fusion without a name, its longest inner one."""
        names = [instruction.op_name]
        for called in instruction.called:
            names += [inner.op_name for inner in self.computations.get(called, [])]
        return names[0] or max(names, key=len)

    def prepared_parameters(self, prefix: str) -> list[str]:
        """Launches that compute something from nothing but parameters, such as a cast.

        Args:
          prefix: of the arguments that are parameters of a network, as the program names them.

        Returns:
          Each as `instruction: parameters`.
        """
        fixed: dict[str, set[str]] = {}
        found = []
        for instruction in self.computations[self.entry]:
            if instruction.opcode == "parameter":
                if instruction.op_name.startswith(prefix):
                    fixed[instruction.name] = {instruction.op_name}
            elif instruction.opcode == "constant":
                fixed[instruction.name] = set()
            elif instruction.operands and all(name in fixed for name in instruction.operands):
                names = set().union(*(fixed[name] for name in instruction.operands))
                fixed[instruction.name] = names
                # A copy that starts is one to another memory of a TPU, ahead of its use.
                if instruction.kind and names and not instruction.opcode.endswith("-start"):
                    found.append(f"{instruction.name}: {', '.join(sorted(names))}")
        return found


def shape_bytes(shape: str) -> int:
    """Bytes of a shape as XLA prints it, or of all shapes of a tuple."""
    total = 0
    for dtype, sides in re.findall(r"\b(pred|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]", shape):
        bits = 8 if dtype == "pred" else int(re.findall(r"\d+", dtype)[0])
        size = 1
        for side in sides.split(",") if sides else ():
            size *= int(side)
        total += size * bits // 8
    return total


def readable_module(op_name: str) -> str:
    """A module and operation without the names of JAX's own transformations."""
    parts = [part for part in op_name.split("/") if not _WRAPPER.fullmatch(part)]
    return "/".join(parts)


def _parse(name: str, text: str) -> Instruction:
    """An instruction from what follows `name = `: shape, opcode, operands and attributes."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, text = text[:end], text[end:].lstrip()
    start = text.index("(")
    end = _closing(text, start)
    operands = tuple(re.findall(r"%([\w.\-]+)", text[start + 1 : end]))
    return Instruction(name, shape, text[:start], operands, text[end + 1 :])


def _closing(text: str, start: int) -> int:
    """Position of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    return len(text)
