"""Curvature products and estimators by losscope and its peers, on the same problems in one process.

    python benchmarks/kernels.py [--device cuda] [--repeats 7] [--only mlp] [--tables eigenpairs traces]

Writes ``benchmarks/results/kernels-<device>.md``, a figure and the raw numbers. How to read them: ``README.md``.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

import checklist
import density
import eigenpairs
import lanczos
import products
import torch
import traces
import tracking
from contenders import (
    KERNELS,
    Contender,
    gauss_newton_contenders,
    hessian_contenders,
)
from contest import Comparison, Rules
from measuring import machine
from problems import Problem, gauss_newton_reference, hessian_reference, problems
from report import TABLES, Report

RESULTS = Path(__file__).parent / "results"

Ways = tuple[Callable[[Problem], list[Contender]], Callable]
PRODUCTS: dict[str, Ways] = {
    "hessian": (hessian_contenders, hessian_reference),
    "gauss_newton": (gauss_newton_contenders, gauss_newton_reference),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu, cuda")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="problems whose key contains a word")
    parser.add_argument(
        "--tables", nargs="+", default=TABLES, choices=TABLES, metavar="TABLE",
        help=f"measure only these again: {', '.join(TABLES)}",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="does it run at all: no memory, nothing compiled")
    parser.add_argument("--budget", type=float, default=6.0, help="seconds for one row and block size on one problem")
    parser.add_argument(
        "--patience", type=float, default=30.0, help="seconds; a model that takes longer to compile is compiled once"
    )
    parser.add_argument(
        "--skip-compiled", nargs="*", metavar="WORD", help="compile nothing for these problems' tables of products"
    )
    parser.add_argument("--memory", nargs=2, metavar=("TABLE", "KEY"), help="only this, printed as JSON")
    return parser.parse_args()


class Benchmark:
    """One run of everything."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device = torch.device(options.device)
        self.blocks = (1, 8, 16) if self.device.type == "cuda" else (1, 8)
        self.least, self.budget = (0.002, 0.1) if options.quick else (0.04, options.budget)
        self.repeats = 2 if options.quick else options.repeats
        self.slow_to_compile: dict[str, str] = {}  # family: the problem it was compiled for

    def contenders(self, table: str, problem: Problem) -> list[Contender]:
        """Who takes part; where compiling a model took long, it is compiled for that one set of shapes only."""
        found = PRODUCTS[table][0](problem)
        compiled_for = self.slow_to_compile.get(problem.family.name, problem.key)
        if self.options.quick or self.skips(problem) or compiled_for != problem.key:
            found = [c for c in found if c.kernel != "compiled"]
        return found

    def skips(self, problem: Problem) -> bool:
        """Whether nothing is to be compiled for a problem."""
        words = self.options.skip_compiled
        return words is not None and (not words or any(word in problem.key for word in words))

    def note_compiling(self, problem: Problem, result: products.Result) -> None:
        for row in result.rows:
            seconds = max((block.first for block in row.blocks.values()), default=0.0)
            if row.kernel == "compiled" and seconds > self.options.patience:
                self.slow_to_compile[problem.family.name] = problem.key

    def products(self, table: str, problem: Problem) -> products.Result:
        """One problem's rows of the first or third table, with their memory."""
        started = time.perf_counter()
        right = products.reference(problem, PRODUCTS[table][1], max(self.blocks))
        result = products.measure(
            problem, self.contenders(table, problem), right, self.blocks, self.repeats,
            least=self.least, budget=self.budget,
        )  # fmt: skip
        self.note_compiling(problem, result)
        products.note_memory(result, self.memory(table, problem))
        print(f"{products.table(result, self.blocks)}\n({table}, {time.perf_counter() - started:.0f} s)\n", flush=True)
        return result

    def lanczos(self, problem: Problem) -> lanczos.Forty:
        """One problem's runs of the second table, with their memory."""
        started = time.perf_counter()
        forty = lanczos.measure(problem, self.repeats, 5 * self.budget, compiled=not self.options.quick)
        memory = self.memory("lanczos", problem)
        for run in forty.runs:
            run.memory = memory.get(run.name)
        print(f"{lanczos.table(forty)}\n({time.perf_counter() - started:.0f} s)\n", flush=True)
        return forty

    def memory(self, table: str, problem: Problem) -> dict:
        """Peak memory of a table's rows on a problem: here on a GPU, in a child process on a CPU."""
        if self.options.quick:
            return {}
        if self.device.type == "cuda":
            return self.memory_here(table, problem)
        skipped = self.skips(problem) or self.slow_to_compile.get(problem.family.name, problem.key) != problem.key
        return products.memory_in_child(["--memory", table, problem.key, *(["--skip-compiled"] if skipped else [])])

    def memory_here(self, table: str, problem: Problem) -> dict:
        if table == "lanczos":
            return lanczos.memory_of(problem)
        # A single product of the larger models shows what there is to see, and blocks of them take minutes.
        blocks = self.blocks if problem.family.name == "MLP" or self.device.type == "cuda" else self.blocks[:1]
        return products.memory_of(problem, self.contenders(table, problem), blocks)

    def rules(self, problem: Problem) -> Rules:
        """What a comparison of estimators on a problem may spend."""
        quick = self.options.quick
        tries = 3 if problem.family.name == "MLP" and not quick else 1
        return Rules(self.repeats, self.least, self.budget, tries, patience=0.2 if quick else 2.0)

    def chosen(self, found: list[Problem], usual: Collection[str]) -> list[Problem]:
        """The problems of a table: its usual ones, or those that ``--only`` names."""
        return [problem for problem in found if self.options.only or problem.key in usual]

    def run(self) -> None:
        """Measure the tables asked for, and write what there is after each."""
        found, target = problems(self.device, tuple(self.options.only)), self.target
        report = Report.read(target.with_suffix(".json"), besides=self.options.tables)
        for table in self.options.tables:
            report.where[table] = f"{machine(self.device)}; {self.repeats} repeats"
        if "products" in self.options.tables:
            self.measure_products(found, report)
            report.write(target)
        if "lanczos" in self.options.tables:
            report.forties = [self.lanczos(problem) for problem in found if problem.key in lanczos.PROBLEMS]
            report.write(target)
        if "products" in self.options.tables:
            report.gauss_newton = [self.products("gauss_newton", problem) for problem in found]
            report.write(target)
        for table, comparisons in self.estimators(found):
            for comparison, text in comparisons:
                getattr(report, table).append(comparison)
                print(text, flush=True)
                report.write(target)
        files = report.draw(target) if "products" in self.options.tables else []
        print(checklist.table(report.lines()), "written:", target.with_suffix(".md"), *files)

    def measure_products(self, found: list[Problem], report: Report) -> None:
        """The first table, and what `choose` picks."""
        for problem in found:
            report.hessian.append(self.products("hessian", problem))
            if any(row.kernel == "compiled" for row in report.hessian[-1].rows):
                picked = checklist.picks(problem, self.blocks)
                print(*picked, sep="\n", end="\n\n", flush=True)
                report.chosen += picked

    def estimators(self, found: list[Problem]) -> Iterator[tuple[str, Iterator[tuple[Comparison, str]]]]:
        """By table: comparisons one by one, each with its text."""
        makers = {
            "eigenpairs": self.eigenpairs, "traces": self.traces, "tracking": self.tracking, "density": self.density,
        }  # fmt: skip
        for table, make in makers.items():
            if table in self.options.tables:
                yield table, make(found)

    def eigenpairs(self, found: list[Problem]) -> Iterator[tuple[Comparison, str]]:
        for k, usual in ((1, [problem.key for problem in found]), (10, eigenpairs.TEN)):
            for problem in self.chosen(found, usual):
                comparison = eigenpairs.measure(problem, k, self.rules(problem))
                yield comparison, eigenpairs.table(comparison)

    def traces(self, found: list[Problem]) -> Iterator[tuple[Comparison, str]]:
        known: dict[tuple[str, int], traces.Reference] = {}  # in other batches the matrix is the same
        for problem in self.chosen(found, traces.PROBLEMS):
            matrix = problem.family.name, problem.samples
            if matrix not in known:
                known[matrix] = traces.reference(problem, 0 if self.options.quick else traces.EXACT)
            comparison = traces.measure(problem, known[matrix], self.rules(problem))
            yield comparison, traces.table(comparison)

    def tracking(self, found: list[Problem]) -> Iterator[tuple[Comparison, str]]:
        for problem in self.chosen(found, tracking.PROBLEMS):
            few = 2 if problem.size > 100_000 else self.repeats
            comparison = tracking.measure(problem, few, 30 if self.options.quick else None)
            yield comparison, tracking.table(comparison)

    def density(self, found: list[Problem]) -> Iterator[tuple[Comparison, str]]:
        quick = self.options.quick
        for problem in self.chosen(found, density.PROBLEMS):
            known = None if quick or problem.size > density.EXACT else density.spectrum(problem)
            rules = replace(self.rules(problem), patience=0.2 if quick else 60.0)  # nothing is searched for
            comparison = density.measure(problem, known, rules, compiled=not quick)
            yield comparison, density.table(comparison)

    @property
    def target(self) -> Path:
        """Where results go, without a suffix."""
        return self.options.out / f"kernels-{self.device.type}"


def main() -> None:
    options = arguments()
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # else code compiled yesterday would make compiling look cheap
        cache = tempfile.TemporaryDirectory(prefix="kernels-", ignore_cleanup_errors=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache.name
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    benchmark = Benchmark(options)
    if options.memory is None:
        print(f"{machine(benchmark.device)}; kernels tried: {', '.join(KERNELS)}\n", flush=True)
        benchmark.run()
        return
    table, key = options.memory
    [problem] = [p for p in problems(benchmark.device, (key,)) if p.key == key]
    print(json.dumps(benchmark.memory_here(table, problem)))


if __name__ == "__main__":
    main()
