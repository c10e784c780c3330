"""``{help} report``: what ``losscope report --help`` says, asked when the pages are built."""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Help(SphinxDirective):
    """The help of one command; without an argument, that of the program and then of every command under a heading."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        import typer

        from losscope.viz.cli import app

        program = typer.main.get_command(app)
        commands = program.commands  # type: ignore[attr-defined]
        if self.arguments:
            return [text_of(commands[self.arguments[0]], f"losscope {self.arguments[0]}")]
        found: list[nodes.Node] = [text_of(program, "losscope")]
        for name, command in sorted(commands.items()):
            section = nodes.section(ids=[f"losscope-{name}"], names=[f"losscope {name}"])
            section += [nodes.title(text=f"losscope {name}"), text_of(command, f"losscope {name}")]
            found.append(section)
        return found


def text_of(command: Any, name: str) -> nodes.literal_block:
    """What ``--help`` prints, at a width that fits the page."""
    context = command.make_context(name, [], resilient_parsing=True, max_content_width=88, terminal_width=88)
    text = command.get_help(context).strip()
    return nodes.literal_block(text, text, language="text", classes=["help"])


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("help", Help)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
