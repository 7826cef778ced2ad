"""The costs of compiled programs as a table of text and as a JSON file."""

import json
from collections.abc import Sequence
from pathlib import Path

from efficientad_jax.compilation.costs import Costs
from efficientad_jax.compilation.targets import Target
from efficientad_jax.storage.atomic import write_atomically

_MOST_OPERATIONS = 20


def render(target: Target, costs: Sequence[Costs], *, breakdown: bool = False) -> str:
    """A block of lines for each program.

    Args:
      target: that they were compiled for.
      costs: of the programs.
      breakdown: whether to list the most expensive operations.
    """
    lines = [
        f"{target.title}: {target.flops / 1e12:.0f} TFLOP/s in bfloat16, "
        f"{target.bandwidth / 1e9:.0f} GB/s, {_gigabytes(target.usable_memory)} usable. "
        "Compiled, not run: all times are estimates."
    ]
    for cost in costs:
        lines += ["", *_program_lines(cost)]
        if breakdown:
            lines += ["", *_operation_lines(cost)]
    return "\n".join(lines)


def write_costs(
    folder: Path, name: str, target: Target, costs: Sequence[Costs], *, versions: dict[str, str]
) -> None:
    """Writes `compile_NAME.json` and `compile_NAME.txt`, the latter with the breakdown.

    Raises:
      OSError: they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "target": target.title,
        "versions": versions,
        "programs": [
            cost._asdict()
            | {"operations": [o._asdict() for o in cost.operations[:_MOST_OPERATIONS]]}
            for cost in costs
        ],
    }
    content = json.dumps(record, indent=2) + "\n"
    write_atomically(folder / f"compile_{name}.json", content.encode())
    text = render(target, costs, breakdown=True) + "\n"
    write_atomically(folder / f"compile_{name}.txt", text.encode())


def _program_lines(cost: Costs) -> list[str]:
    lines = [cost.program, f"  memory       {_fit(cost)}"]
    if cost.memory is not None and (cost.arguments or cost.temporary):
        lines.append(
            f"  of which     {_gigabytes(cost.arguments)} arguments, "
            f"{_gigabytes(cost.temporary)} temporary"
        )
    lines.append(f"  operations   {cost.flops / 1e9:.1f} GFLOP")
    if cost.least:
        lines.append(f"  at least     {1000 * cost.least:.3f} ms")
    if cost.cycles:
        lines.append(
            f"  estimate     {cost.cycles / 1e6:.2f} M cycles, {1000 * cost.predicted:.3f} ms; "
            f"the least is {100 * cost.least / cost.predicted:.0f} % of it"
        )
    if cost.kernels and not cost.cycles:
        total = sum(cost.kernels.values())
        kinds = ", ".join(f"{count} {kind}" for kind, count in cost.kernels.items())
        lines.append(f"  launches     {total}: {kinds}")
    if cost.collectives:
        kinds = ", ".join(f"{count} {kind}" for kind, count in cost.collectives.items())
        lines.append(f"  collectives  {kinds}")
    lines += [f"  prepares a parameter in each call: {launch}" for launch in cost.prepared]
    return lines


def _fit(cost: Costs) -> str:
    usable = _gigabytes(cost.usable_memory)
    if cost.memory is None:
        return f"does not fit into {usable}"
    taken = _gigabytes(cost.memory)
    left = cost.usable_memory - cost.memory
    if cost.fits:
        return f"{taken}, fits with {_gigabytes(left)} to spare"
    return f"{taken}, exceeds {usable} by {_gigabytes(-left)}"


def _operation_lines(cost: Costs) -> list[str]:
    """The most expensive operations: by cycles on a TPU, by bytes on a GPU."""
    lines = [f"  {'cycles':>10} {'MB':>9} {'times':>5}  what, from where"]
    for operation in cost.operations[:_MOST_OPERATIONS]:
        cycles = f"{operation.cycles:,}" if operation.cycles else "-"
        lines.append(
            f"  {cycles:>10} {operation.bytes / 1e6:9.2f} {operation.times:5}  "
            f"{operation.kind} {operation.name}: {operation.module or 'added by the compiler'}"
        )
    return lines


def _gigabytes(size: float | int) -> str:
    return f"{size / 1e9:.2f} GB"
