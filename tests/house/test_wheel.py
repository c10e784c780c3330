"""The wheel and the sdist hold exactly the package files that git has."""

import importlib.util
import zipfile
from email import message_from_bytes
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """Return the script that the gate itself runs."""
    spec = importlib.util.spec_from_file_location("check_wheel", ROOT / ".ci" / "check_wheel.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def built(check: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return check.build(tmp_path_factory.mktemp("dist"))


def test_files_are_those_of_git(check: ModuleType, built: tuple[Path, Path]) -> None:
    assert check.differences(*built) == []
    assert len(check.package_files()) > 5
    assert {"LICENSE", "README.md", "pyproject.toml"} <= check.sdist_files(built[0])


def test_a_forgotten_file_is_named(check: ModuleType, built: tuple[Path, Path], tmp_path: Path) -> None:
    sdist, wheel = built
    poorer = tmp_path / wheel.name
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(poorer, "w") as new:
        for name in old.namelist():
            if name != "losscope/probes/__init__.py":
                new.writestr(name, old.read(name))
        new.writestr("probes/__init__.py", "")
    assert check.differences(sdist, poorer) == [
        "not in the wheel: losscope/probes/__init__.py",
        "only in the wheel: probes/__init__.py",
    ]


def test_metadata(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as archive:
        names = archive.namelist()
        folder = next(name.split("/")[0] for name in names if name.split("/")[0].endswith(".dist-info"))
        metadata = message_from_bytes(archive.read(f"{folder}/METADATA"))
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
    assert metadata["Name"] == "losscope"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert f"{folder}/licenses/LICENSE" in names
    assert "losscope = losscope.viz.cli:main" in entry_points
