"""Compiles a program for a target and reads what the compiler says of it."""

import re
from collections import Counter
from typing import Any, NamedTuple

import jax

from efficientad_jax.compilation.flops import count_flops
from efficientad_jax.compilation.hlo import (
    CompiledProgram,
    Launch,
    readable_module,
    shape_bytes,
)
from efficientad_jax.compilation.programs import Program
from efficientad_jax.compilation.targets import Target

# Of XLA's message where a program does not fit: "Used 21.5G of 15.75G hbm."
_USED = re.compile(r"[Uu]sed ([\d.]+)([KMG]) of ")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


class Operation(NamedTuple):
    """A launch of the program.

    Attributes:
      name: in the compiled program.
      kind: what is launched.
      module: the module and operation of the Python program that it comes from.
      times: how often it is launched, in a step or in the whole program.
      cycles: the compiler's estimate for all of them, on a TPU.
      bytes: that all of them read and write.
    """

    name: str
    kind: str
    module: str
    times: int
    cycles: int
    bytes: int


class Costs(NamedTuple):
    """The costs of a compiled program; `flops`, `cycles`, `kernels` and `collectives` of a step.

    Attributes:
      program: its name.
      fits: whether it fits the device's memory.
      memory: bytes that it takes, None if the compiler only says that it does not fit.
      usable_memory: bytes that it may take.
      arguments: bytes of its arguments.
      temporary: bytes that it needs besides.
      flops: floating-point operations of its convolutions and products.
      cycles: the sum of the compiler's estimates on a TPU, 0 on a GPU.
      predicted: seconds that these cycles take, 0 on a GPU.
      least: seconds that the device needs for the operations or for reading the parameters,
        whichever is longer.
      kernels: number of launches by kind.
      collectives: number of launches by the name of the collective operation.
      prepared: launches that compute something from nothing but parameters.
      operations: all launches, the most expensive first.
    """

    program: str
    fits: bool
    memory: int | None
    usable_memory: int
    arguments: int = 0
    temporary: int = 0
    flops: float = 0.0
    cycles: int = 0
    predicted: float = 0.0
    least: float = 0.0
    kernels: dict[str, int] = {}  # noqa: RUF012
    collectives: dict[str, int] = {}  # noqa: RUF012
    prepared: list[str] = []  # noqa: RUF012
    operations: list[Operation] = []  # noqa: RUF012


def costs_of(program: Program, target: Target) -> Costs:
    """Compiles a program for a target, without running it."""
    traced = program.trace()
    flops = count_flops(traced.jaxpr.jaxpr) / max(program.steps, 1)
    usable = int(target.usable_memory)
    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        match = _USED.search(str(error))
        used = None if match is None else int(float(match[1]) * _UNITS[match[2]])
        return Costs(program.name, False, used, usable, flops=flops)
    memory: Any = compiled.memory_analysis()
    taken = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    text = CompiledProgram(compiled.as_text() or "")
    operations = _operations(text, text.steps_body if program.steps else "")
    cycles = sum(operation.cycles for operation in operations)
    launched: Counter[str] = Counter()
    collectives: Counter[str] = Counter()
    for operation in operations:
        launched[operation.kind] += operation.times
        if operation.kind == "collective":
            collectives[re.sub(r"(-start)?[.\d]*$", "", operation.name)] += operation.times
    return Costs(
        program.name,
        taken <= usable,
        taken,
        usable,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        flops,
        cycles,
        cycles / target.clock if target.clock else 0.0,
        max(flops / target.flops, program.least_bytes / target.bandwidth),
        dict(launched.most_common()),
        dict(collectives),
        text.prepared_parameters(program.parameters) if program.parameters else [],
        operations,
    )


def _operations(text: CompiledProgram, computation: str) -> list[Operation]:
    """The launches of a computation, those of most cycles or bytes first."""
    shapes = {
        instruction.name: instruction.shape
        for instructions in text.computations.values()
        for instruction in instructions
    }

    def operation(launch: Launch) -> Operation:
        instruction, times = launch
        operands = (shapes.get(name, "") for name in instruction.operands)
        size = sum(map(shape_bytes, (instruction.shape, *operands)))
        return Operation(
            instruction.name,
            instruction.kind,
            readable_module(text.op_name(instruction)),
            times,
            instruction.cycles * times,
            size * times,
        )

    operations = map(operation, text.launches(computation))
    return sorted(operations, key=lambda o: (o.cycles, o.bytes), reverse=True)
