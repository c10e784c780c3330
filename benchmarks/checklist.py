"""What the kernels have to show, measured against its limits."""

import statistics
import time
from dataclasses import dataclass

import density
import torch
import tracking
from contenders import KERNELS, OURS, objective
from contest import Comparison
from lanczos import Forty, Run
from measuring import MIB, short
from problems import Problem
from products import EXACT, Result, Row

CHOICE_MARGIN = 1.10
ONE_BATCH, MANY_BATCHES, TRACKED = 1.05, 1.5, 4.0
DENSITY, STARTS = {"mlp-1797": 0.7, "resnet-128": 1.1}, 5.0
PLANNED = 1_000_000  # so many that compiling is repaid, as the tables do not count it


@dataclass(frozen=True)
class Line:
    """One requirement: what was measured, the limit, and whether it holds (None: not measured)."""

    what: str
    measured: str
    limit: str
    holds: bool | None

    def __str__(self) -> str:
        verdict = {True: "yes", False: "**NO**", None: "**not measured**"}[self.holds]
        return f"| {self.what} | {self.measured} | {self.limit} | {verdict} |"


@dataclass(frozen=True)
class Picked:
    """What `choose` picked for a problem and a block size, or why it could not."""

    problem: str
    block: int
    kernel: str
    seconds: float
    note: str = ""


def picks(problem: Problem, blocks: tuple[int, ...]) -> list[Picked]:
    """Ask `choose`, for each block size."""
    try:
        from losscope.landscape.kernels.choice import choose
    except ImportError:
        return []
    found, asked = [], objective(problem, problem.fresh())
    for k in blocks:
        started = time.perf_counter()
        try:
            choice = choose(asked, block=k, planned=PLANNED)
            kernel, note = choice.kernel, str(choice.reason)
        except Exception as error:
            kernel, note = "", f"fails: {short(error)}"
        found.append(Picked(problem.key, k, kernel, time.perf_counter() - started, note))
    return found


# --------------------------------------------------------------------------- the lines


def lines(
    hessian: list[Result],
    forties: list[Forty],
    chosen: list[Picked],
    blocks: tuple[int, ...],
    pairs: list[Comparison],
    tracks: list[Comparison],
    densities: list[Comparison],
) -> list[Line]:
    """Lines 2, 3, 4 and 7 of what the kernels must show, and what the estimators must, for what was measured."""
    by_key = {result.key: result for result in hessian}
    largest = max(blocks)
    return [
        *_lanczos(forties),
        _compiled_block(by_key.get("mlp-128")),
        *(_against_peers(result, 8 if 8 in blocks else largest) for result in hessian if len(result.batches) > 1),
        *_choices(by_key, chosen, blocks),
        *(_on_gpu(by_key.get(key), key, largest) for key in ("mlp-128", "gpt-128")),
        *(_top_pair(comparison) for comparison in pairs if comparison.task == "top 1"),
        *map(_tracked, tracks),
        *(_density(comparison) for comparison in densities if comparison.key in DENSITY),
        *(_eight_starts(comparison) for comparison in densities if comparison.key == "mlp-128"),
    ]


def _lanczos(forties: list[Forty]) -> list[Line]:
    out = []
    for key, limit in (("mlp-1797", 1.15), ("mlp-128", 1.35), ("resnet-512", 1.1)):
        forty = next((f for f in forties if f.key == key), None)
        what = f"2. {key}: a product in 40 steps, in bare calls"
        run = _run(forty, "losscope: top_eigenpairs, retained")
        default = _run(forty, "losscope: top_eigenpairs")
        if run is None:
            out.append(Line(what, "", f"<= {limit}", None))
            continue
        ratio = statistics.median(run.ratios)
        text = f"{ratio:.2f} ({run.products} products)"
        if default is not None:
            text += f"; by default {statistics.median(default.ratios):.2f}"
        out.append(Line(what, text, f"<= {limit}", ratio <= limit))
    forty = next((f for f in forties if f.key == "resnet-512"), None)
    mine, theirs = _run(forty, "losscope: top_eigenpairs, retained"), _run(forty, "PyHessian: density")
    what = "2. resnet-512: peak memory of the run"
    if mine is None or theirs is None or mine.memory is None or theirs.memory is None:
        return [*out, Line(what, "", "<= PyHessian's density(iter=40)", None)]
    text = f"{mine.memory / MIB:.1f} MiB"
    limit_text = f"<= {theirs.memory / MIB:.1f} MiB, PyHessian's density(iter=40)"
    return [*out, Line(what, text, limit_text, mine.memory <= theirs.memory)]


def _run(forty: Forty | None, name: str) -> Run | None:
    found = [run for run in forty.runs if run.name == name and run.ratios] if forty is not None else []
    return found[0] if found else None


def _row(result: Result | None, kernel: str) -> Row | None:
    found = [row for row in result.rows if row.package == OURS and row.kernel == kernel] if result else []
    return found[0] if found and not found[0].failure else None


def _compiled_block(result: Result | None) -> Line:
    what, limit = "2. mlp-128: compiled, per vector of a block of 8, in gradients", "<= 0.5"
    row = _row(result, "compiled")
    if result is None or row is None or 8 not in row.blocks:
        return Line(what, "", limit, None)
    gradients = row.blocks[8].seconds / result.gradient
    return Line(what, f"{gradients:.2f} (first call {row.blocks[8].first:.1f} s)", limit, gradients <= 0.5)


def _against_peers(result: Result, k: int) -> Line:
    what = f"3. {result.key}: per vector of a block of {k}, in the fastest correct peer's time for one"
    peers = [row for row in result.rows if row.peer and row.correct]
    ours = [row for row in result.rows if row.package == OURS and row.correct and k in row.blocks]
    if not peers or not ours:
        return Line(what, "", "<= 0.75", None)
    peer = min(peers, key=lambda row: row.blocks[1].seconds)
    best = min(ours, key=lambda row: row.blocks[k].seconds)
    ratio = best.blocks[k].seconds / peer.blocks[1].seconds
    text = f"{ratio:.2f} ({best.kernel} / {peer.name})"
    retained = _row(result, "retained")
    if retained is not None and retained is not best:
        text += f"; retained {retained.blocks[k].seconds / peer.blocks[1].seconds:.2f}"
    return Line(what, text, "<= 0.75", ratio <= 0.75)


def _choices(by_key: dict[str, Result], chosen: list[Picked], blocks: tuple[int, ...]) -> list[Line]:
    out = []
    for key, result in by_key.items():
        for k in blocks:
            what = f"4. {key}: what choose picks for blocks of {k}, in the measured fastest's time"
            limit = f"<= {CHOICE_MARGIN:.2f}"
            found = [pick for pick in chosen if pick.problem == key and pick.block == k]
            rows = [row for kernel in KERNELS if (row := _row(result, kernel)) is not None and k in row.blocks]
            rows = [row for row in rows if row.correct]
            picked = next((row for row in rows if found and row.kernel == found[0].kernel), None)
            if picked is None:
                out.append(Line(what, found[0].note if found else "not asked", limit, None))
                continue
            # Differences that say of themselves that they are off are nothing to choose where products are exact.
            exact = [row for row in rows if row.error <= EXACT or row is picked]
            best = min(exact, key=lambda row: row.blocks[k].seconds)
            ratio = picked.blocks[k].seconds / best.blocks[k].seconds
            text = f"{ratio:.2f} ({picked.kernel}; fastest {best.kernel})"
            for row in rows:
                if row not in exact and row.blocks[k].seconds < best.blocks[k].seconds:
                    text += f"; {row.kernel}, {row.error:.0e} off, {row.blocks[k].seconds / best.blocks[k].seconds:.2f}"
            out.append(Line(what, text, limit, ratio <= 1.1))
    return out


def _on_gpu(result: Result | None, key: str, k: int) -> Line:
    what, limit = f"7. {key} on a GPU: one-at-a-time retained, in the time per vector of a block of 16", ">= 5"
    if not torch.cuda.is_available() or result is None or k < 16:
        return Line(what, "", limit, None)
    one = _row(result, "retained")
    ours = [row for row in result.rows if row.package == OURS and row.correct and k in row.blocks]
    if one is None or not ours:
        return Line(what, "", limit, None)
    best = min(ours, key=lambda row: row.blocks[k].seconds)
    ratio = one.blocks[1].seconds / best.blocks[k].seconds
    return Line(what, f"{ratio:.1f} ({best.kernel})", limit, ratio >= 5)


def _top_pair(found: Comparison) -> Line:
    """The default against the fastest peer that reaches the same residual at the right eigenvalue."""
    limit = 1 / MANY_BATCHES if found.batches > 1 else ONE_BATCH
    what = f"estimators, {found.key}: top eigenpair, in the time of the fastest peer that reaches the residual"
    ours = [row for row in found.rows if row.package == OURS and row.reached]
    peers = [row for row in found.rows if row.package != OURS and row.reached]
    if not ours or not peers:
        text = "no peer reaches it" if ours else "not reached"
        return Line(what, text, f"<= {limit:.2f}", bool(ours) or None)
    peer = min(peers, key=lambda row: row.median)
    ratio = ours[0].median / peer.median
    others = "".join(f"; {row.name.split(', ')[-1]} {row.median / peer.median:.2f}" for row in ours[1:])
    return Line(what, f"{ratio:.2f} (by default / {peer.name}){others}", f"<= {limit:.2f}", ratio <= limit)


def _tracked(found: Comparison) -> Line:
    """What following the sharpness costs less than PyHessian's defaults."""
    what = f"estimators, {found.key}: PyHessian's time for every tenth step, in ours at errors no larger"
    rows = {row.name: row for row in found.rows if row.seconds and not row.failure}
    ours = [row for row in rows.values() if row.package == OURS]
    if tracking.PEER not in rows or not ours:
        return Line(what, "", f">= {TRACKED:g}", None)
    peer = rows[tracking.PEER]
    ratios = [(row, peer.median / row.median) for row in ours]
    best = max((ratio for row, ratio in ratios if row.reached and _no_larger(row.errors, peer.errors)), default=0.0)
    text = "; ".join(f"{row.name.removeprefix('losscope: ')} {ratio:.1f}" for row, ratio in ratios)
    return Line(what, text, f">= {TRACKED:g}", best >= TRACKED)


def _no_larger(errors: list[float], others: list[float]) -> bool:
    """Whether they are so in the median and at worst."""
    return all(of(errors) <= of(others) for of in (statistics.median, max))


def _density(found: Comparison) -> Line:
    """Forty steps of one vector against PyHessian's."""
    what, limit = f"density, {found.key}: forty steps of one vector, in PyHessian's time", DENSITY[found.key]
    rows = {row.name: row for row in found.rows if row.seconds and not row.failure}
    if density.ONE not in rows or density.PEER not in rows:
        return Line(what, "", f"<= {limit}", None)
    ratio = rows[density.ONE].median / rows[density.PEER].median
    return Line(what, f"{ratio:.2f}", f"<= {limit}", ratio <= limit)


def _eight_starts(found: Comparison) -> Line:
    """What seven more starts cost where the block is compiled."""
    what, limit = f"density, {found.key}: eight vectors in a compiled block, in the time of one", f"<= {STARTS:g}"
    rows = {row.name: row for row in found.rows if row.seconds and not row.failure}
    if density.ONE not in rows or density.EIGHT not in rows:
        return Line(what, "", limit, None)
    ratio = rows[density.EIGHT].median / rows[density.ONE].median
    return Line(what, f"{ratio:.1f}", limit, ratio <= STARTS)


def table(found: list[Line]) -> str:
    """The lines in Markdown."""
    head = "| what | measured | limit | holds |\n|---|---|---|---|\n"
    return head + "\n".join(map(str, found)) + "\n"
