"""All claims in one table: gather the claims.json of several folders into Markdown.

    python case_studies/table.py runs/edge_of_stability runs/matrix_factorisation
    python case_studies/table.py case_studies/results --readme case_studies/README.md

With ``--readme`` the table replaces what stands between the two marks in that file.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from claims import CLAIMS, Claim, markdown_table, read_claims

BEGIN, END = "<!-- claims: begin -->", "<!-- claims: end -->"


def gather(folders: Sequence[Path]) -> dict[str, list[Claim]]:
    """The claims of each study, from every ``claims.json`` in or below the folders, by name of the study.

    Raises:
        SystemExit: if there are none, or a study comes twice.
    """
    found: dict[str, list[Claim]] = {}
    files = [path for folder in folders for path in ([folder] if folder.is_file() else sorted(folder.rglob(CLAIMS)))]
    for path in files:
        study, claims = read_claims(path)
        if study in found:
            raise SystemExit(f"{path}: the claims of {study} come a second time; name one folder of it")
        found[study] = claims
    if not found:
        raise SystemExit(f"no {CLAIMS} in {', '.join(map(str, folders))}")
    return dict(sorted(found.items()))


def written(found: dict[str, list[Claim]]) -> str:
    """A table for each study, headed where there are several, below a line that counts the verdicts."""
    counts = Counter(claim.verdict for claims in found.values() for claim in claims)
    total = f"{counts.total()} claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    heads = {study: f"### {study}\n\n" if len(found) > 1 else "" for study in found}
    parts = [heads[study] + markdown_table(claims) for study, claims in found.items()]
    return "\n\n".join([total, *parts])


def replace(path: Path, text: str) -> None:
    """Put the text between the two marks.

    Raises:
        SystemExit: if the marks are not there, once each and in order.
    """
    before = path.read_text()
    head, begin, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has no lines {BEGIN!r} and {END!r} to put the table between")
    path.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or put it into a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders with a claims.json in or below them")
    parser.add_argument("--readme", type=Path, help="file to put the table into, between its marks")
    options = parser.parse_args(arguments)
    text = written(gather(options.folders))
    if options.readme:
        replace(options.readme, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
