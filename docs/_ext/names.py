"""``{names} module``: what docstrings say of these names. And references to names without their full path."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.roles import XRefRole
from sphinx.util.docutils import SphinxDirective

PLACES = (
    "losscope.landscape", "losscope.probes", "losscope.viz", "losscope.landscape.surface",
    "losscope.landscape.stability", "losscope.landscape.tangent", "losscope.landscape.kernels", "losscope",
)  # fmt: skip
"""Where a short name is looked for, in this order."""

ELSEWHERE = (
    "torch", "nn", "Tensor", "np", "numpy", "matplotlib", "plotly", "pandas", "pathlib", "contextlib", "transformers",
    "lightning", "collections",
)  # fmt: skip
"""What begins so is not ours, and there is no inventory of it."""


SILENT = ("Shown", "ShownAsRun")
"""Bases that say nothing to a reader: that notebooks show a table."""

HIDDEN = "\x00"


class Names(SphinxDirective):
    """A table of the names, and then each of them in full; ``...`` is what no page names yet."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        module, names = self.arguments[0], " ".join(self.content).split()
        if "..." in names:
            pages = sorted((Path(self.env.srcdir) / "api").glob("*.md"))
            for page in pages:
                self.env.note_dependency(page)
            names[names.index("...") : names.index("...") + 1] = unnamed(pages, module)
        listed = "".join(f"   {name}\n" for name in names if described(module, name))
        rst = f".. currentmodule:: {module}\n\n.. autosummary::\n\n{listed}\n"
        rst += "".join(directive(module, name) for name in names)
        return self.parse_text_to_nodes(f"````{{eval-rst}}\n{rst}````")


def unnamed(pages: list[Path], module: str) -> list[str]:
    """The public names of a module that no page of the reference has."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    blocks = re.findall(r"^```\{names\} losscope\.[\w.]+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    named = set(" ".join(blocks).split())
    return [name for name in importlib.import_module(module).__all__ if name not in named]


def described(module: str, name: str) -> bool:
    """Whether it has a docstring of its own: constants have none."""
    value = getattr(importlib.import_module(module), name)
    return inspect.isclass(value) or inspect.isfunction(value)


def directive(module: str, name: str) -> str:
    """What autodoc is to do for one name."""
    value = getattr(importlib.import_module(module), name)
    if inspect.isclass(value):
        told = [base for base in value.__bases__ if base is not object and base.__name__ not in SILENT]
        inherits = "   :show-inheritance:\n" if told else ""
        return f".. autoclass:: {name}\n   :members:\n{inherits}\n"
    if inspect.isfunction(value):
        return f".. autofunction:: {name}\n\n"
    return f".. py:data:: {name}\n   :value: {list(value) if isinstance(value, dict) else value!r}\n\n"


class NameRole(XRefRole):
    """A name in single backticks."""

    def process_link(
        self, env: BuildEnvironment, refnode: nodes.Element, has_explicit_title: bool, title: str, target: str
    ) -> tuple[str, str]:
        refnode["refdomain"], refnode["reftype"], refnode["quiet"] = "py", "obj", True
        refnode["py:module"], refnode["py:class"] = env.ref_context.get("py:module"), env.ref_context.get("py:class")
        return title.rpartition(".")[2] if title.startswith("losscope.") else title, target.removesuffix("()")


def candidates(node: addnodes.pending_xref, target: str) -> list[str]:
    """Full names that a short one may stand for: of the same class or module first."""
    module, cls = node.get("py:module"), node.get("py:class")
    own = [".".join(filter(None, parts)) for parts in ((module, cls), (module,)) if any(parts)]
    return [target, *(f"{place}.{target}" for place in (*own, *PLACES))]


def resolve(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """A link to the first candidate that has a page; for a name in a docstring without one, its code."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains["py"]
    known = domain.objects  # type: ignore[attr-defined]
    for name in candidates(node, node["reftarget"]):
        if name in known:
            found = node.deepcopy()
            found["reftarget"], found["reftype"] = name, "obj"
            return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", name, found, content)
    return content if node.get("quiet") or internal(node["reftarget"]) else None


def internal(target: str) -> bool:
    """Whether it is a type of ours that signatures name and no page describes."""
    module, _, name = target.rpartition(".")
    return module.startswith("losscope.") and hasattr(importlib.import_module(module), name)


def hide_colons(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from reading the docstring of a property, "what: which", as "type: description"."""
    if what in ("attribute", "data", "property"):
        lines[:] = [line.replace(": ", HIDDEN) for line in lines]


def show_colons(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Put them back once napoleon is done."""
    lines[:] = [line.replace(HIDDEN, ": ") for line in lines]


def signature(app: Sphinx, what: str, name: str, value: Any, options: Any, given: str | None, to: str | None) -> Any:
    """Say "..." for a default that is made anew, which Sphinx could not read."""
    return None if given is None else (given.replace("<factory>", "..."), to)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("names", Names)
    app.add_role("name", NameRole())
    app.connect("autodoc-process-docstring", hide_colons, priority=400)
    app.connect("autodoc-process-docstring", show_colons, priority=600)
    app.connect("autodoc-process-signature", signature)
    app.connect("missing-reference", resolve, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
