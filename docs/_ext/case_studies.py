"""The pages of ``case_studies/`` among these: copied at the build, with figures, so that they are written once."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

OTHERS = "\n```{toctree}\n:hidden:\n:glob:\n\n[!R]*\n```\n"
PICTURE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")


def copy(app: Sphinx, *_: Any) -> None:
    """Write what has changed; a page keeps its time where nothing has, so that it is not read again."""
    target = Path(app.srcdir) / "case_studies"
    source = target.parents[1] / "case_studies"
    kept = set()
    for page in sorted(source.glob("*.md")):
        text = PICTURE.sub(lambda found: with_picture(found, source, target), page.read_text(encoding="utf-8"))
        path = target / page.name
        path.parent.mkdir(exist_ok=True)
        text += OTHERS if page.name == "README.md" else ""
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
        kept.add(path)
    for path in set(target.glob("*.md")) - kept:
        path.unlink()


def with_picture(found: re.Match[str], source: Path, target: Path) -> str:
    """The picture beside the copy of its page; its words where a study has not been run in full yet."""
    words, name = found.groups()
    if not (source / name).is_file():
        return f"*{' '.join(words.split())}* (to be drawn by the script)"
    path = target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != (source / name).read_bytes():
        shutil.copyfile(source / name, path)
    return found.group(0)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
