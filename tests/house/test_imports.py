"""Who imports whom: the direction of the arrows, one import name, and nothing heavier than asked for."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("landscape", "probes", "viz")
MAY_IMPORT = {"landscape": set(), "probes": {"landscape"}, "viz": {"landscape", "probes"}}
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def loaded_after(statements: Sequence[str], cwd: Path) -> list[set[str]]:
    """Return the top-level names in ``sys.modules`` of a fresh interpreter after each of ``statements``."""
    said = "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    code = "\n".join(["import sys", *(f"{statement}\n{said}" for statement in statements)])
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [set(line.split()) for line in done.stdout.splitlines()[-len(statements) :]]


# The mathematics imports none of these, not even inside a function; importing probes loads no plotting and no
# command-line library, but may show progress.
LOOKS = {"matplotlib", "plotly", "typer", "click", "rich", "pandas", "sklearn", "jinja2", "IPython"}
HEAVY = {"landscape": LOOKS | {"tqdm"}, "probes": LOOKS}


def test_imports_are_light_and_under_one_name(tmp_path: Path) -> None:
    """What torch drags in by itself (tqdm, where it is installed) is torch's affair. In one interpreter, one by one."""
    torch, *after, everything = loaded_after(
        ["import torch", *(f"import losscope.{package}" for package in HEAVY), "import losscope.viz, losscope.viz.cli"],
        tmp_path,
    )
    for package, loaded in zip(HEAVY, after, strict=True):
        assert "losscope" in loaded
        assert (loaded - torch) & HEAVY[package] == set(), package
    assert everything & set(PACKAGES) == set()


def imported(path: Path) -> Iterator[tuple[int, str, int]]:
    """Yield (line, full module name, relative level) of every import in a file, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "losscope":
            yield from ((node.lineno, f"losscope.{alias.name}", 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or "", node.level


def faults(path: Path) -> list[str]:
    """Return one line for each import of a package file that breaks a rule of CONTRIBUTING.md."""
    parts = path.relative_to(ROOT).parts
    package = parts[0]
    found = []
    for line, name, level in imported(path):
        where = f"{'/'.join(parts)}:{line}:"
        head = name.split(".")
        if level >= len(parts):
            found.append(f"{where} a relative import leaves losscope.{package}; name the other folder in full")
        elif level == 0 and head[0] in PACKAGES:
            found.append(f"{where} bare import of {name}; it is called losscope.{name}")
        elif level == 0 and package == "landscape" and head[0] in HEAVY[package]:
            found.append(f"{where} losscope.{package} may not import {name}")
        elif level == 0 and head[0] == "losscope":
            other = head[1] if len(head) > 1 else ""
            if other == package:
                found.append(f"{where} import of its own folder by full name; import it relatively")
            elif other not in MAY_IMPORT[package]:
                found.append(f"{where} losscope.{package} may not import {name}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_arrows(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize(
    ("package", "statement", "complaint"),
    [
        ("landscape", "from losscope.probes import watch", "may not import losscope.probes"),
        ("landscape", "def f():\n    import losscope.viz.report", "may not import losscope.viz.report"),
        ("landscape", "def f():\n    from tqdm.auto import tqdm", "may not import tqdm.auto"),
        ("landscape", "from losscope import probes", "may not import losscope.probes"),
        ("probes", "from losscope.viz import figure", "may not import losscope.viz"),
        ("probes", "from losscope.probes.run import Run", "its own folder"),
        ("probes", "from ..landscape import Hessian", "leaves losscope.probes"),
        ("viz", "import losscope", "may not import losscope"),
        ("viz", "import probes", "bare import of probes"),
    ],
)
def test_faults_are_seen(
    package: str, statement: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / package / "module.py"
    path.parent.mkdir()
    path.write_text(statement)
    (fault,) = faults(path)
    assert complaint in fault


@pytest.mark.parametrize(
    ("package", "statement"),
    [
        ("landscape", "import torch\nfrom .krylov import top_eigenpairs\nfrom .kernels.retained import Kernel"),
        ("probes", "from losscope.landscape import Hessian\nfrom losscope import landscape\nfrom . import run"),
        ("viz", "from losscope.probes import Run\nfrom losscope.landscape.stability import Verdict"),
    ],
)
def test_what_is_right_passes(package: str, statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / package / "module.py"
    path.parent.mkdir()
    path.write_text(statement)
    assert faults(path) == []
