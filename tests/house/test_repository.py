"""Hygiene of the checkout: file sizes, docstrings, the changelog, and nothing that names one machine."""

import importlib
import inspect
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("landscape", "probes", "viz")
LONGEST = 450

# Written so that this file does not match itself.
MACHINE = re.compile(r"(?<![\w.~$}/-])/(?:" + "|".join(("work", "root", r"home/\w+", r"Users/\w+")) + r")/")
REGISTRY = re.compile(
    "|".join(("py" + r"pi\.org", "--" + "(?:extra-)?index-url", "--" + "find-links", "PIP" + "_(?:EXTRA_)?INDEX"))
)


def tracked() -> list[Path]:
    command = ["git", "ls-files", "-z"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def lines_matching(pattern: re.Pattern[str]) -> list[str]:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        numbered = enumerate(text.splitlines(), start=1)
        found += [f"{path.relative_to(ROOT)}:{number}: {line}" for number, line in numbered if pattern.search(line)]
    return found


def test_no_machine_paths() -> None:
    assert lines_matching(MACHINE) == []


def test_no_registry_addresses() -> None:
    assert lines_matching(REGISTRY) == []


def test_patterns_find_what_they_look_for() -> None:
    slash = "/"
    assert MACHINE.search(f"cd {slash}root{slash}x")
    assert MACHINE.search(f'"{slash}home{slash}ada{slash}x"')
    assert not MACHINE.search(f"tests{slash}work{slash}x and ~{slash}work{slash}x")
    assert REGISTRY.search("pip install --" + "index-url x")


def test_no_long_files() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text


def modules() -> Iterator[str]:
    for package in PACKAGES:
        yield f"losscope.{package}"
        found = importlib.import_module(f"losscope.{package}")
        yield from (info.name for info in pkgutil.walk_packages(found.__path__, f"losscope.{package}."))


def has_own_docstring(value: object) -> bool:
    """Tell whether somebody wrote a docstring: not inherited, not the signature that ``@dataclass`` puts there."""
    text = vars(value).get("__doc__") if inspect.isclass(value) else getattr(value, "__doc__", None)
    return bool(text and text.strip() and not text.startswith(f"{getattr(value, '__name__', '')}("))


@pytest.mark.parametrize("name", list(modules()))
def test_public_names_have_docstrings(name: str) -> None:
    try:
        module: ModuleType = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == "losscope":
            raise
        pytest.skip(f"{name} needs {error.name}, which is not installed")
    public = getattr(module, "__all__", [])
    assert len(public) == len(set(public))
    assert [each for each in public if not hasattr(module, each)] == []
    described = [each for each in public if inspect.isclass(getattr(module, each)) or callable(getattr(module, each))]
    assert [each for each in described if not has_own_docstring(getattr(module, each))] == []
    assert has_own_docstring(module)
