"""Build the sdist and, from it, the wheel; compare the packages' files in both with git's.

    python .ci/check_wheel.py OUT

What is built is a copy of the files git knows (or would know: new files that it does not ignore), so that neither a
stale build/ nor an old *.egg-info has a say. The exit code is 1 where a file is missing or too many.
"""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("landscape", "probes", "viz")


def git_files() -> list[str]:
    """Return the paths of the checkout's files that git tracks or would track, relative to its root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return sorted({name for name in listed.split("\0") if name and (ROOT / name).is_file()})


def package_files() -> set[str]:
    """Return the members of git's files that belong into the wheel, as paths of the checkout."""
    return {name for name in git_files() if name.split("/")[0] in PACKAGES}


def build(out: Path) -> tuple[Path, Path]:
    """Build into the folder ``out``, which must not hold an older build; return the sdist and the wheel."""
    source = out / "source"
    for name in git_files():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise RuntimeError(f"the build failed:\n{done.stdout[-4000:]}")
    (sdist,) = out.glob("losscope-*.tar.gz")
    (wheel,) = out.glob("losscope-*.whl")
    return sdist, wheel


def wheel_files(wheel: Path) -> set[str]:
    """Return what the wheel installs, less its own metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}


def sdist_files(sdist: Path) -> set[str]:
    """Return the files of the sdist, relative to its one folder."""
    with tarfile.open(sdist) as archive:
        return {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}


def differences(sdist: Path, wheel: Path) -> list[str]:
    """Return one line for each file that git has and a build lacks, or the other way round."""
    expected = package_files()
    faults = []
    for kind, wanted, found in (
        ("wheel", {f"losscope/{name}" for name in expected}, wheel_files(wheel)),
        ("sdist", expected, {name for name in sdist_files(sdist) if name.split("/")[0] in PACKAGES}),
    ):
        faults += [f"not in the {kind}: {name}" for name in sorted(wanted - found)]
        faults += [f"only in the {kind}: {name}" for name in sorted(found - wanted)]
    return faults


def main() -> int:
    """Build into the folder named on the command line and compare."""
    out = Path(sys.argv[1])
    sdist, wheel = build(out)
    wrong = differences(sdist, wheel)
    print("\n".join(wrong or [f"{sdist.name} and {wheel.name} hold git's {len(package_files())} package files"]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
