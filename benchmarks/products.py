"""First and third table: one product with a curvature matrix, by every library and kernel."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from contenders import Contender, Engine, failure_in
from measuring import MIB, Slot, interleave, peak_memory, timed
from problems import CRITERION, Problem
from torch import Tensor

EXACT = 1e-3
"""Relative error from which a product that claims to be exact is called wrong.

In float32 a network with ReLUs is itself some 1e-4 away from float64, where units near zero change sides.
"""

MEMORY_TIMEOUT = 900


@dataclass
class Block:
    """What a block of k vectors took.

    Attributes:
        seconds: per vector, median.
        first: seconds of the first call with this block size, which compiles what is compiled.
        memory: peak bytes of a call from nothing, above those before it.
    """

    seconds: float = float("nan")
    first: float = float("nan")
    memory: float | None = None


@dataclass
class Row:
    """One contender on one problem.

    Attributes:
        problem: its key.
        name: the contender's.
        package: the contender's library.
        kernel: the contender's kernel.
        peer: whether it is another library, or the textbook, and keeps no more than one graph.
        opening: seconds until it could be asked for a product.
        error: largest relative error over the block sizes.
        stated: the error it states itself, in units of the matrix's norm, where it does.
        off: its error in that unit, largest over the vectors.
        blocks: by block size.
        failure: why there are no numbers.
    """

    problem: str
    name: str
    package: str
    kernel: str
    peer: bool
    opening: float = float("nan")
    error: float = float("nan")
    stated: float | None = None
    off: float = 0.0
    blocks: dict[int, Block] = field(default_factory=dict)
    failure: str = ""

    @property
    def correct(self) -> bool:
        as_stated = self.stated is not None and self.off <= self.stated
        return not self.failure and (self.error <= EXACT or as_stated)

    @property
    def failed(self) -> bool:
        return self.failure.startswith("fails")

    def missing(self, k: int) -> bool:
        return bool(self.failure) or k not in self.blocks


@dataclass
class Result:
    """Everything measured on one problem; ``gradient`` is in seconds."""

    key: str
    title: str
    size: int
    batches: list[int]
    gradient: float
    rows: list[Row]


def seconds_of_gradient(problem: Problem) -> Callable[[int], None]:
    """Forward and backward over all the problem's batches, as a training loop does them."""
    model = problem.fresh()
    parameters = list(model.parameters())

    def run(calls: int) -> None:
        for _ in range(calls):
            for x, y in problem.batches:
                torch.autograd.grad(CRITERION(model(x), y), parameters)

    return run


def vectors(problem: Problem, k: int) -> Tensor:
    """The random block (n, k); its first columns are those of a smaller block."""
    rows = [torch.randn(problem.size, generator=torch.Generator().manual_seed(j)) for j in range(k)]
    return torch.stack(rows).to(problem.device).T


@dataclass(frozen=True)
class Reference:
    """Products of the random block in float64, (n, largest block), and the matrix's norm, from below."""

    products: Tensor
    norm: float


def reference(problem: Problem, by_hand: Callable[[Problem, Tensor], Tensor], block: int) -> Reference:
    """The reference that ``by_hand`` computes; the norm is what three power steps find."""
    found = by_hand(problem, vectors(problem, block))
    u = found[:, :1]
    for _ in range(2):
        u = by_hand(problem, u / u.norm())
    return Reference(found, float(u.norm()))


def measure(
    problem: Problem,
    contenders: list[Contender],
    right: Reference,
    blocks: tuple[int, ...],
    repeats: int,
    *,
    least: float,
    budget: float,
) -> Result:
    """Open every contender, check its products against the reference, and time them in turns.

    Args:
        problem: what is differentiated.
        contenders: who takes part.
        right: the reference.
        blocks: block sizes.
        repeats: rounds.
        least: seconds that a turn lasts at least.
        budget: seconds that one contender's turns with one block size may take altogether.
    """
    rows, slots = [], {}
    with contextlib.ExitStack() as stack:
        for contender in contenders:
            row = Row(problem.key, contender.name, contender.package, contender.kernel, contender.peer)
            rows.append(row)
            with failure_in(row):
                started = time.perf_counter()
                engine = stack.enter_context(contender.engine(problem))
                row.opening = time.perf_counter() - started
                for k in blocks:
                    slots[contender.name, k] = _checked(row, contender, engine, vectors(problem, k), right)
        gradient = Slot(seconds_of_gradient(problem))
        gradient.run(2)
        interleave([gradient, *slots.values()], repeats, problem.device, least=least, budget=budget)
    for row in rows:
        for k, block in row.blocks.items():
            block.seconds = slots[row.name, k].median / k
    return Result(problem.key, problem.title, problem.size, [len(x) for x, _ in problem.batches], gradient.median, rows)


def _checked(row: Row, contender: Contender, engine: Engine, V: Tensor, right: Reference) -> Slot:
    """Ask for one block, judge it, and make it ready to be timed."""
    native, k = engine.native(V), V.shape[1]
    found: list[Tensor] = []

    def first() -> None:
        with contender.around(), engine.held():
            found.append(engine.flat(engine.product(native)).detach().double())

    seconds = timed(first, V.device)
    expected = right.products[:, :k]
    miss = found[0] - expected
    row.error = max(float(miss.norm() / expected.norm()), 0.0 if math.isnan(row.error) else row.error)
    row.off = max(row.off, float((miss.norm(dim=0) / V.double().norm(dim=0)).max()) / right.norm)
    row.stated = _stated_error(contender, engine)
    row.blocks[k] = Block(first=seconds)

    def run(calls: int) -> None:
        with contender.around(), engine.held():
            for _ in range(calls):
                engine.product(native)

    return Slot(run, first=0.0 if contender.kernel == "compiled" else seconds)


def _stated_error(contender: Contender, engine: Engine) -> float | None:
    """What finite differences say they are off by; the others are exact but for rounding."""
    return engine.operator.space.rounding if contender.kernel == "finite_difference" else None


# --------------------------------------------------------------------------- memory


def memory_of(problem: Problem, contenders: list[Contender], blocks: tuple[int, ...]) -> dict[str, dict[int, int]]:
    """Peak bytes per contender and block size of opening it and asking for one block, from nothing.

    What it needs once per process (libraries, threads) is there already. A compiled kernel is compiled
    before: the compiler's own memory is not counted.
    """
    device = problem.device
    found: dict[str, dict[int, int]] = {}
    for contender in contenders:
        used = found.setdefault(contender.name, {})
        with contextlib.suppress(Exception):  # its failure is in the table already
            if contender.kernel == "compiled":
                _compiled_memory(contender, problem, blocks, used)
                continue
            _product_from_nothing(contender, problem, vectors(problem, 1))
            for k in blocks:
                V = vectors(problem, k)
                used[k] = peak_memory(lambda c=contender, V=V: _product_from_nothing(c, problem, V), device)
    return found


def _product_from_nothing(contender: Contender, problem: Problem, V: Tensor) -> None:
    with contender.engine(problem) as engine, contender.around(), engine.held():
        engine.product(engine.native(V))


def _compiled_memory(contender: Contender, problem: Problem, blocks: tuple[int, ...], used: dict[int, int]) -> None:
    with contender.engine(problem) as engine, contender.around(), engine.held():
        for k in blocks:
            V = vectors(problem, k)
            engine.product(V)
            used[k] = peak_memory(lambda V=V: engine.product(V), problem.device)


def memory_in_child(arguments: list[str]) -> dict:
    """Run the command with these arguments in a process of its own, made to give memory back; what it prints last.

    Not in the process that times: giving every tensor back to the system makes products two to three
    times slower.
    """
    script = Path(__file__).with_name("kernels.py")
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        env=environment, capture_output=True, text=True, timeout=MEMORY_TIMEOUT, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        print(f"  memory was not measured: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])


def note_memory(result: Result, found: dict[str, dict]) -> None:
    """Put measured memory (block sizes as numbers or words) into the rows."""
    for row in result.rows:
        for k, used in found.get(row.name, {}).items():
            if int(k) in row.blocks:
                row.blocks[int(k)].memory = used


# --------------------------------------------------------------------------- the table


def table(result: Result, blocks: tuple[int, ...]) -> str:
    """One problem's rows in Markdown."""
    sizes = ", ".join(map(str, sorted(set(result.batches), reverse=True)))
    head = (
        f"**{result.title}**: {result.size:,} parameters, {len(result.batches)} "
        f"batch{'es' if len(result.batches) > 1 else ''} of {sizes}; one gradient {1e3 * result.gradient:.2f} ms\n"
    )
    columns = ["library: kernel", "relative error"]
    for k in blocks:
        columns += [f"k = {k}: ms per vector", "gradients", "MiB", "first call, s"]
    lines = [head, "| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    for row in result.rows:
        cells = [row.name, _error_cell(row)]
        if row.failure:
            cells = [row.name, f"**{row.failure}**"] + [""] * (4 * len(blocks))
        else:
            for k in blocks:
                cells += _block_cells(row.blocks[k], result.gradient, row.opening if k == blocks[0] else 0.0)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _error_cell(row: Row) -> str:
    text = f"{row.error:.0e}"
    if row.stated is not None:
        text += f" ({row.off:.0e} of the norm; states {row.stated:.0e})"
    return text if row.correct else f"**wrong: {text}**"


def _block_cells(block: Block, gradient: float, opening: float) -> list[str]:
    memory = "" if block.memory is None else f"{block.memory / MIB:.1f}"
    return [
        f"{1e3 * block.seconds:.3g}", f"{block.seconds / gradient:.2f}", memory, f"{opening + block.first:.2g}",
    ]  # fmt: skip


def as_json(results: list[Result]) -> list[dict]:
    return [asdict(result) for result in results]


def from_json(items: list[dict]) -> list[Result]:
    """The results that `as_json` made the items of."""
    results = []
    for item in items:
        rows = [
            Row(**{**row, "blocks": {int(k): Block(**block) for k, block in row["blocks"].items()}})
            for row in item["rows"]
        ]
        results.append(Result(**{**item, "rows": rows}))
    return results
