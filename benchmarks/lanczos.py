"""Second table: forty steps of Lanczos, from the model and the data to the eigenvalue, everything included.

The smallest eigenvalue is asked for: the largest converges to rounding in half as many steps, and ends the run.
"""

import contextlib
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

from contenders import Contender, curvlinops_operator, failure_in, objective, plain_retained, pyhessian_object
from measuring import MIB, peak_memory, timed
from problems import Problem
from products import seconds_of_gradient, vectors
from solvers import Meter, arpack, power_iteration

from losscope.landscape import Hessian, top_eigenpairs

STEPS = 40
REQUIRED = "losscope: top_eigenpairs, retained"
"""The run that the requirements are about; it gets every repeat."""

PROBLEMS = ("mlp-1797", "mlp-128", "resnet-512")


@dataclass
class Run:
    """One way to do forty products; ``seconds`` and ``ratios`` (to the bare call) per product, one per repeat."""

    name: str
    go: Callable[[int], tuple[int, float]] | None = None
    products: int = 0
    value: float = float("nan")
    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    memory: float | None = None
    failure: str = ""


@dataclass
class Forty:
    """The runs on one problem, and what the bare call and a gradient take there, in seconds."""

    key: str
    title: str
    bare: float
    gradient: float
    runs: list[Run]


# --------------------------------------------------------------------------- the ways


def ours(problem: Problem, kernel: str | None, block: int = 1) -> Callable[[int], tuple[int, float]]:
    """`top_eigenpairs` with an objective and an operator of its own each time."""
    model = problem.fresh()

    def go(steps: int) -> tuple[int, float]:
        made = objective(problem, model)
        operator = Hessian(made) if kernel is None else Hessian(made, kernel=kernel)
        found = top_eigenpairs(operator, k=block, which="SA", max_matvecs=steps, tol=operator.space.rounding, seed=0)
        return found.matvecs, float(found.values[0])

    return go


def ours_kept(problem: Problem, kernel: str, block: int) -> Callable[[int], tuple[int, float]]:
    """The same on snapshots of one objective, as a watched run takes them: compiled code is there already."""
    first = objective(problem, problem.fresh())

    def go(steps: int) -> tuple[int, float]:
        operator = Hessian(first.snapshot(0), kernel=kernel)
        steps = max(steps, block)
        found = top_eigenpairs(operator, k=block, which="SA", max_matvecs=steps, tol=operator.space.rounding, seed=0)
        return found.matvecs, float(found.values[0])

    return go


def density(problem: Problem) -> Callable[[int], tuple[int, float]]:
    """PyHessian's Lanczos."""
    model = problem.fresh()

    def go(steps: int) -> tuple[int, float]:
        try:
            values, _ = pyhessian_object(problem, model).density(iter=steps, n_v=1)
        finally:
            model.zero_grad()
        return steps, float(min(values[0]))

    return go


def power(problem: Problem) -> Callable[[int], tuple[int, float]]:
    """PyHessian's power iteration, which finds the eigenvalue that is largest in magnitude."""
    model = problem.fresh()

    def go(steps: int) -> tuple[int, float]:
        found = power_iteration(problem, model, Meter(), maxIter=steps, tol=0.0)
        return steps, float(found.values[0])

    return go


def eigsh(problem: Problem) -> Callable[[int], tuple[int, float]]:
    """ARPACK on curvlinops' operator, here with as many vectors, to 1 %."""
    model = problem.fresh()

    def go(steps: int) -> tuple[int, float]:
        meter = Meter()
        found = arpack(problem, model, meter, k=1, which="SA", ncv=max(3, steps), tol=1e-2)
        return meter.products, float(found.values[0])

    return go


def own_lanczos(problem: Problem) -> Callable[[int], tuple[int, float]]:
    """curvlinops' own Lanczos, which does not reorthogonalise."""
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    model = problem.fresh()

    def go(steps: int) -> tuple[int, float]:
        values, _ = fast_lanczos(curvlinops_operator(problem, model), steps)
        return steps, float(values.min())

    return go


def _ways(problem: Problem, compiled: bool) -> list[tuple[str, Callable[[], Callable[[int], tuple[int, float]]]]]:
    ways = [
        ("losscope: top_eigenpairs", lambda: ours(problem, None)),
        (REQUIRED, lambda: ours(problem, "retained")),
    ]
    if compiled and problem.key == "mlp-128":
        ways.append(("losscope: top_eigenpairs, k = 8, compiled before", lambda: ours_kept(problem, "compiled", 8)))
    return [
        *ways,
        ("PyHessian: density", lambda: density(problem)),
        ("PyHessian: eigenvalues", lambda: power(problem)),
        ("curvlinops: eigsh", lambda: eigsh(problem)),
        ("curvlinops: fast_lanczos", lambda: own_lanczos(problem)),
    ]


def _opened(problem: Problem, compiled: bool) -> list[Run]:
    """Every way, tried with a few steps."""
    runs = []
    for name, make in _ways(problem, compiled):
        run = Run(name)
        with failure_in(run):
            run.go = make()
            run.go(4)
        runs.append(run)
    return runs


# --------------------------------------------------------------------------- timing


def measure(problem: Problem, repeats: int, budget: float, compiled: bool = True) -> Forty:
    """Time all ways in turns; the bare call right before and after each.

    Args:
        problem: what is differentiated.
        repeats: rounds; ways whose rounds would last longer than ``budget`` get fewer, at least two.
        budget: seconds.
        compiled: whether to compile anything.
    """
    device, runs = problem.device, _opened(problem, compiled)
    bare_contender = Contender("plain torch", "retained", plain_retained, math=problem.family.attention)
    gradients: list[float] = []
    bares: list[float] = []
    with bare_contender.engine(problem) as engine:
        native = engine.native(vectors(problem, 1))

        def bare() -> float:
            for _ in range(2):
                engine.product(native)
            once = timed(lambda: engine.product(native), device)
            calls = max(2, min(STEPS, round(0.1 / once)))
            return timed(lambda: [engine.product(native) for _ in range(calls)], device) / calls

        for turn in range(repeats):
            gradients.append(_gradient_seconds(problem))
            before = bare()
            bares.append(before)
            for run in runs:
                if run.failure or _spent_enough(run, turn, budget):
                    continue
                with failure_in(run):
                    run.seconds.append(timed(lambda run=run: _go(run), device) / max(1, run.products))
                    after = bare()
                    run.ratios.append(run.seconds[-1] / ((before + after) / 2))
                    before = after
                    bares.append(after)
    return Forty(problem.key, problem.title, statistics.median(bares), statistics.median(gradients), runs)


def _go(run: Run) -> None:
    run.products, run.value = run.go(STEPS)


def _spent_enough(run: Run, turn: int, budget: float) -> bool:
    if turn < 2 or run.name == REQUIRED:
        return False
    return (turn + 1) * statistics.median(run.seconds) * run.products > budget


def _gradient_seconds(problem: Problem) -> float:
    run = seconds_of_gradient(problem)
    run(1)
    calls = max(1, min(50, round(0.05 / timed(lambda: run(1), problem.device))))
    return timed(lambda: run(calls), problem.device) / calls


def memory_of(problem: Problem) -> dict[str, int]:
    """Peak bytes of each whole run, above the model and the data."""
    found = {}
    large = problem.size > 100_000  # twelve minutes for all ways
    for name, make in _ways(problem, compiled=True):
        if large and name not in (REQUIRED, "PyHessian: density"):
            continue
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            go = make()
            go(4)
            found[name] = peak_memory(lambda go=go: go(STEPS), problem.device)
    return found


# --------------------------------------------------------------------------- the table


def table(forty: Forty) -> str:
    """One problem's runs in Markdown."""
    lines = [
        f"**{forty.title}**: the bare retained call {1e3 * forty.bare:.2f} ms, one gradient "
        f"{1e3 * forty.gradient:.2f} ms\n",
        "| run | products | ms per product | times the bare call | gradients | eigenvalue found | MiB | repeats |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in forty.runs:
        if run.failure or not run.seconds:
            lines.append(f"| {run.name} | **{run.failure}** | | | | | | |")
            continue
        seconds = statistics.median(run.seconds)
        memory = "" if run.memory is None else f"{run.memory / MIB:.1f}"
        lines.append(
            f"| {run.name} | {run.products} | {1e3 * seconds:.3g} | {statistics.median(run.ratios):.2f} "
            f"| {seconds / forty.gradient:.2f} | {run.value:.5g} | {memory} | {len(run.seconds)} |"
        )
    return "\n".join(lines) + "\n"


def as_json(forties: list[Forty]) -> list[dict]:
    kept = ("name", "products", "value", "seconds", "ratios", "memory", "failure")
    return [
        {**vars(forty), "runs": [{name: getattr(run, name) for name in kept} for run in forty.runs]}
        for forty in forties
    ]


def from_json(items: list[dict]) -> list[Forty]:
    """The runs that `as_json` made the items of."""
    return [Forty(**{**item, "runs": [Run(**run) for run in item["runs"]]}) for item in items]
