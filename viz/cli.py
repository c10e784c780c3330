"""The command line: ``losscope demo | report RUN... | live RUN | audit RUN | doctor | export RUN | surface FILE``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["app", "main"]

EXIT_FAILED, EXIT_BAD = 1, 2

app = typer.Typer(
    name="losscope",
    help="Watch the loss surface of a PyTorch training loop: sharpness, trace, spectrum and stability.\n\n"
    "Runs are recorded from Python, with losscope.probes.watch; these commands read them.",
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as written by watch(..., out=RUN).")]


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """What the user can mend is said in one line, without a traceback."""
    from losscope.landscape import LosscopeError

    from .inert import clean

    try:
        yield
    except (LosscopeError, OSError) as error:
        said = str(error)
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            said = f"{str(error.filename)!r}: {error.strerror}"  # without Python's number of the error
        print(f"losscope: {clean(' '.join(said.split()))}", file=sys.stderr)
        raise typer.Exit(EXIT_BAD) from None


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"losscope {version('losscope')}")
        except PackageNotFoundError:
            print("losscope (not installed)")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[
        Path | None, typer.Option(help="Folder for the two runs; default: runs/demo, or runs/demo-2 ... if taken.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each run.")] = 3000,
    seed: Annotated[int, typer.Option(min=0, help="Seeds data order, initialisation and mini-batches.")] = 0,
) -> None:
    """Train a small network twice under watch, and write figures and pages.

    A tanh network on scikit-learn's digits, by full-batch gradient descent and by mini-batch SGD, both at
    learning rate 2/20. Gradient descent sharpens until the top Hessian eigenvalue reaches 2/lr = 20 and
    hovers there. Takes under a minute or two.

    Example:  losscope demo --out runs/first --seed 1
    """
    with _one_line_errors():
        from .demo import run_demo

        run_demo(out, steps, seed)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, as written by watch(..., out=RUN).")],
    out: Annotated[Path | None, typer.Option(help="The file to write; default: report.html in the first RUN.")] = None,
    static: Annotated[
        bool, typer.Option("--static", help="No script at all: smaller, and the figures are pictures.")
    ] = False,
) -> None:
    """Write one self-contained HTML page on a run, or on several side by side, and print where it is.

    The story of the run, figures, verdicts, facts, cost and failures of every player; it loads nothing from elsewhere
    and can be mailed.

    Example:  losscope report runs/a runs/b --out ab.html
    """
    with _one_line_errors():
        from .report import report as write

        print(write(runs, out, static=static))


@app.command()
def live(
    run: RunArgument,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: a free one from 8642 on.")] = None,
    text: Annotated[
        bool, typer.Option("--text", help="On the terminal; once where the output is no terminal.")
    ] = False,
    browse: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Follow a run while it is being written, until Ctrl-C.

    The page of losscope report at an address of this machine, which takes up new records within seconds, also after
    the run was killed and resumed. It is read-only: nothing outside the run folder is read, nothing is written. From
    elsewhere: ssh -L 8642:127.0.0.1:8642 HOST, with the port that is printed.

    Example:  losscope live runs/a --open
    """
    with _one_line_errors():
        from .live import live as follow

        follow(run, port=port, text=text, browse=browse)


@app.command()
def audit(
    run: RunArgument,
    player: Annotated[str | None, typer.Option(help="Audit this player only; default: all of the run.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object: everything, numbers unrounded, stable keys.")
    ] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Of every criterion: formula, meaning, assumptions, source.")
    ] = False,
    fail_on: Annotated[
        str,
        typer.Option(
            metavar="VERDICT,...",
            help="Verdicts that give exit code 1, e.g. above_edge,at_edge,inconclusive; not_applicable where no "
            "criterion applies; or never. Criteria that are only empirical count with empirical added.",
        ),
    ] = "above_edge",
) -> None:
    """Say where a run stands against its stability thresholds.

    Sharpness, trace and the criteria of mini-batch noise over the last quarter of the run, each with its
    interval, threshold, verdict and reason. Exit code 0; 1 when a criterion that applies is ABOVE_EDGE, or has
    a verdict that --fail-on names; 2 for bad usage or a run that cannot be read. A criterion whose kind is
    "empirical", seen in experiments and not derived, does not give 1 by itself: --fail-on above_edge,empirical.

    Example:  losscope audit runs/a --fail-on above_edge,at_edge && echo "no criterion at its edge"
    """
    with _one_line_errors():
        from losscope.probes.audit_json import run_audit_as_dict
        from losscope.probes.phases import phases

        from .audit_table import print_audit
        from .facts import read_run
        from .fail_on import FailOn

        failing = FailOn.parse(fail_on)
        read = read_run(run)
        names = [player] if player is not None else read.players
        audits = [read.audit(name) for name in names]
        if as_json:
            print(json.dumps(run_audit_as_dict(read, names), allow_nan=False, indent=2))
        for each in [] if as_json else audits:
            several = len(read.players) > 1
            title = f"{read.name}: {each.player}" if several else read.name
            print_audit(each, title=title, phases=phases(read, each.player), explain=explain)
    if failing.fails(audits):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def doctor(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run folder; without one, this machine is looked at.")
    ] = None,
) -> None:
    """Say what can be measured here, or what the measuring of a run cost and why.

    Without RUN: versions, devices and threads, which kernel computes curvature products of attention, recurrent,
    checkpointed and compiled models (tried on small ones, within seconds), and the optional packages there are.
    With RUN: what each probe cost in seconds, products, gradients and memory, which kernel was chosen and why,
    what a budget put off, and what failed.

    Example:  losscope doctor runs/a
    """
    with _one_line_errors():
        from .doctor import print_cost, print_doctor
        from .facts import read_run

        if run is None:
            print_doctor()
        else:
            read = read_run(run)
            print_cost(read.cost(), title=read.name)


@app.command()
def export(
    run: RunArgument,
    tensorboard: Annotated[Path, typer.Option(metavar="DIR", help="Folder for TensorBoard's event files.")],
) -> None:
    """Write the records of a run where TensorBoard reads them, and print how many there are.

    Every number of a record becomes a scalar losscope/PLAYER/PROBE/NAME at the record's step. Needs tensorboard.

    Example:  losscope export runs/a --tensorboard logs && tensorboard --logdir logs
    """
    with _one_line_errors():
        from losscope.landscape import SettingError
        from losscope.probes import TensorBoard
        from losscope.probes import export as write

        from .facts import read_run

        try:
            sink = TensorBoard(tensorboard)
        except ImportError as error:
            raise SettingError(str(error)) from None
        print(f"{write(read_run(run), sink):,} records are in {tensorboard}")


@app.command()
def surface(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="As written by losscope.landscape.surface.save.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="The figure: .pdf, .svg, .png, or .html to turn a plane; default: FILE.png."),
    ] = None,
    value: Annotated[str | None, typer.Option(help="The loss, or the name of a metric.")] = None,
    scale: Annotated[str | None, typer.Option(help="auto, linear or log.")] = None,
    size: Annotated[
        tuple[float, float] | None, typer.Option(metavar="WIDTH HEIGHT", help="Of the figure, in inches.")
    ] = None,
) -> None:
    """Draw a plane, a line or a path that was kept in a file, and print where the figure is.

    Several lines, or several paths, are drawn together under the names of their files.

    Example:  losscope surface plane.npz -o plane.pdf --size 3.3 3.4
    """
    with _one_line_errors():
        from .redraw import redraw

        print(redraw(files, out, value=value, scale=scale, size=size))


def main() -> None:
    """Run the command line; the entry point ``losscope``."""
    app(prog_name="losscope")


if __name__ == "__main__":
    main()
