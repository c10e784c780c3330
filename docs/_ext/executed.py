"""``{run}``, ``{file}`` and ``{shell}``: blocks of a page that run when the pages are built, and show what they said.

All blocks of a page share one set of names and one empty folder. As in a notebook, the value of a last line that is an
expression is shown. A block that raises, or a command that fails, is a warning, and so fails ``make docs``; with
``:raises: SettingError`` it is one that does not raise just that, and the message is shown.
"""

from __future__ import annotations

import ast
import contextlib
import html
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
import traceback
import warnings
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from shown import figure_of, is_plotly, plotly_html, save, settle, write_plotly
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)
TERMINAL = {"COLUMNS": "88", "NO_COLOR": "1", "TERM": "dumb"}
WIDEST = 92
"""Characters of a line of output."""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Block(SphinxDirective):
    """What the two kinds have in common."""

    has_content = True
    option_spec: ClassVar = {
        "hidden": directives.flag,
        "quiet": directives.flag,
        "exit-code": directives.nonnegative_int,
    }

    def page(self) -> dict[str, Any]:
        """The names and the folder of this page, made at its first block."""
        pages = self.env.app._executed_pages  # type: ignore[attr-defined]
        if self.env.docname not in pages:
            settle({}, "")
            folder = Path(tempfile.mkdtemp(prefix="losscope-docs-"))
            self.env.app._executed_folders.append(folder)  # type: ignore[attr-defined]
            pages[self.env.docname] = {"names": {"__name__": "__main__"}, "folder": folder}
        return pages[self.env.docname]

    def code(self, text: str, language: str) -> list[nodes.Node]:
        """The block as it is written; nothing where it is hidden."""
        return [] if "hidden" in self.options else [nodes.literal_block(text, text, language=language)]

    def output(self, text: str) -> list[nodes.Node]:
        """What was printed; nothing where it is not to be shown."""
        text = ESCAPES.sub("", text).replace(str(self.page()["folder"]), "~").rstrip()
        if not text or "quiet" in self.options:
            return []
        return [nodes.literal_block(text, text, language="text", classes=["output"])]


class Run(Block):
    """Python."""

    option_spec: ClassVar = Block.option_spec | {"raises": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        source, page = "\n".join(self.content), self.page()
        printed = io.StringIO()
        value = None
        both = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
        try:
            with contextlib.chdir(page["folder"]), both[0], both[1], warnings.catch_warnings():
                warnings.simplefilter("default")
                warnings.showwarning = lambda m, kind, *_, **__: print(f"{kind.__name__}: {m}")
                value = executed(source, page["names"], f"<{self.env.docname}>")
        except Exception as error:
            if type(error).__name__ != self.options.get("raises"):
                logger.warning("a block raised:\n%s\n%s", source, traceback.format_exc(), location=self.get_location())
            printed.write(f"{type(error).__name__}: {error}")
        else:
            if "raises" in self.options:
                logger.warning("a block did not raise:\n%s", source, location=self.get_location())
        text = printed.getvalue()
        rich = [] if "quiet" in self.options else self.rich(value)
        if value is not None and not rich:
            text += repr(value)
        return [*self.code(source, "python"), *self.output(wrapped(text)), *rich]

    def rich(self, value: Any) -> list[nodes.Node]:
        """A figure or HTML, where the value is or has one."""
        figure = figure_of(value)
        if figure is not None:
            return [self.image(figure)]
        if is_plotly(value):
            write_plotly(Path(self.env.app.outdir) / "_static")
            depth = self.env.docname.count("/")
            return [nodes.raw("", plotly_html(value, "../" * depth + "_static/plotly.min.js"), format="html")]
        as_html = getattr(value, "_repr_html_", None)
        made = as_html() if callable(as_html) and not isinstance(value, type) else None
        return [nodes.raw("", f'<div class="rich">{made}</div>', format="html")] if made else []

    def image(self, figure: Any) -> nodes.Node:
        """The figure beside the other images of these pages, under a name that says where it is from."""
        page = self.page()
        page["figures"] = page.get("figures", 0) + 1
        name = f"{self.env.docname.replace('/', '-')}-{page['figures']}.png"
        folder = Path(self.env.app.outdir) / "_executed"
        folder.mkdir(parents=True, exist_ok=True)
        width = save(figure, folder / name)
        source = "../" * self.env.docname.count("/") + f"_executed/{name}"
        labels = [text for axes in figure.axes for text in (axes.get_title(), axes.get_ylabel()) if text]
        said = html.escape("figure: " + ", ".join(labels), quote=True)
        return nodes.raw("", f'<img class="figure" src="{source}" width="{width}" alt="{said}">', format="html")


def wrapped(text: str) -> str:
    """Lines that a page has no room for, broken between words."""
    lines = (
        textwrap.wrap(line, WIDEST, break_long_words=False) if len(line) > WIDEST else [line]
        for line in text.split("\n")
    )
    return "\n".join(each for line in lines for each in line)


class File(Block):
    """A file of the page's folder, named by the argument, for a command that comes later."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        text = "\n".join(self.content)
        (self.page()["folder"] / self.arguments[0]).write_text(text + "\n", encoding="utf-8")
        return self.code(text, "python")


class Shell(Block):
    """Commands, each after its ``$``. Those of losscope run in this process, which spares a start for each."""

    def run(self) -> list[nodes.Node]:
        page, shown = self.page(), []
        expected = self.options.get("exit-code", 0)
        commands = re.split(r"^\$ ", "\n".join(self.content), flags=re.MULTILINE)
        for command in filter(None, map(str.rstrip, commands)):
            run = losscope if command.startswith("losscope ") else shell
            code, said = run(command, page["folder"])
            if code != expected:
                logger.warning("%r gave exit code %d\n%s", command, code, said, location=self.get_location())
            shown += self.code(f"$ {command}", "console") + self.output(said)
        return shown


def losscope(command: str, folder: Path) -> tuple[int, str]:
    """The exit code of a command of ours, and what it printed."""
    from typer.testing import CliRunner

    from losscope.viz.cli import app

    with contextlib.chdir(folder):
        done = CliRunner(env=TERMINAL).invoke(app, shlex.split(command)[1:])
    return done.exit_code, done.output


def shell(command: str, folder: Path) -> tuple[int, str]:
    """The exit code of any other command, and what it printed."""
    here = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    }  # the python of this build
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=os.environ | TERMINAL | here, text=True, timeout=300,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    return done.returncode, done.stdout


def executed(source: str, names: dict[str, Any], where: str) -> Any:
    """Run it, and return the value of its last line where that is an expression."""
    tree = ast.parse(source, where)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, where, "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), where, "eval"), names)


def clean(app: Sphinx, error: Exception | None) -> None:
    """Remove the pages' folders."""
    for folder in app._executed_folders:  # type: ignore[attr-defined]
        shutil.rmtree(folder, ignore_errors=True)


def forget(app: Sphinx, env: Any, docname: str) -> None:
    """A page that is read again starts afresh."""
    app._executed_pages.pop(docname, None)  # type: ignore[attr-defined]


def setup(app: Sphinx) -> dict[str, Any]:
    app._executed_pages, app._executed_folders = {}, []  # type: ignore[attr-defined]
    app.add_directive("file", File)
    app.add_directive("run", Run)
    app.add_directive("shell", Shell)
    app.connect("env-purge-doc", forget)
    app.connect("builder-inited", lambda app: write_plotly(Path(app.outdir) / "_static"))
    app.connect("build-finished", clean)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
