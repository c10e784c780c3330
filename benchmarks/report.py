"""What was measured, in Markdown and in JSON; a table that is not measured again stays as it was."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import checklist
import contest
import density
import eigenpairs
import figures
import lanczos
import products
import traces
import tracking
from checklist import Line, Picked
from contenders import curvlinops_version, eigenthings_version, pyhessian_version
from contest import Comparison
from lanczos import Forty
from products import Result

TABLES = ("products", "lanczos", "eigenpairs", "traces", "tracking", "density")


@dataclass
class Report:
    """All tables.

    Attributes:
        where: by table: the machine and the number of repeats.
        hessian: products with the Hessian.
        gauss_newton: products with the Gauss-Newton matrix.
        chosen: which kernels `choose` picks.
        forties: forty steps of Lanczos.
        eigenpairs: the largest eigenvalue, and the ten largest.
        traces: the trace.
        tracking: the largest eigenvalue along training.
        density: the spectral density.
    """

    where: dict[str, str] = field(default_factory=dict)
    hessian: list[Result] = field(default_factory=list)
    gauss_newton: list[Result] = field(default_factory=list)
    chosen: list[Picked] = field(default_factory=list)
    forties: list[Forty] = field(default_factory=list)
    eigenpairs: list[Comparison] = field(default_factory=list)
    traces: list[Comparison] = field(default_factory=list)
    tracking: list[Comparison] = field(default_factory=list)
    density: list[Comparison] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, besides: tuple[str, ...]) -> Self:
        """The report at ``path``, if there is one, without the tables ``besides``."""
        raw = json.loads(path.read_text()) if path.exists() else {}
        if "machine" in raw:  # written when there were two tables
            raw["where"] = dict.fromkeys(TABLES[:2], raw["machine"])
        parts: dict[str, tuple[str, str, Any]] = {
            "hessian": ("products", "hessian", products.from_json),
            "gauss_newton": ("products", "gauss_newton", products.from_json),
            "chosen": ("products", "choices", lambda items: [Picked(**item) for item in items]),
            "forties": ("lanczos", "lanczos", lanczos.from_json),
            "eigenpairs": ("eigenpairs", "eigenpairs", contest.from_json),
            "traces": ("traces", "traces", contest.from_json),
            "tracking": ("tracking", "tracking", contest.from_json),
            "density": ("density", "density", contest.from_json),
        }
        kept = {name: make(raw.get(key, [])) for name, (part, key, make) in parts.items() if part not in besides}
        where = {name: text for name, text in raw.get("where", {}).items() if name not in besides}
        return cls(where=where, **kept)

    @property
    def blocks(self) -> tuple[int, ...]:
        """Sizes of the blocks in the tables of products."""
        return tuple(sorted({k for result in self.hessian for row in result.rows for k in row.blocks}))

    def lines(self) -> list[Line]:
        """What must hold."""
        return checklist.lines(
            self.hessian, self.forties, self.chosen, self.blocks or (1, 8), self.eigenpairs, self.tracking,
            self.density,
        )  # fmt: skip

    def write(self, target: Path) -> None:
        """Write the Markdown and the numbers."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.with_suffix(".md").write_text("\n".join(self._markdown(target.name)))
        raw = {
            "where": self.where,
            "hessian": products.as_json(self.hessian),
            "lanczos": lanczos.as_json(self.forties),
            "gauss_newton": products.as_json(self.gauss_newton),
            "choices": [asdict(pick) for pick in self.chosen],
            "eigenpairs": contest.as_json(self.eigenpairs),
            "traces": contest.as_json(self.traces),
            "tracking": contest.as_json(self.tracking),
            "density": contest.as_json(self.density),
        }
        target.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n")

    def draw(self, target: Path) -> list[Path]:
        """Draw the first table."""
        return figures.draw(self.hessian, self.blocks, self.where["products"], target) if self.hessian else []

    def _markdown(self, name: str) -> list[str]:
        versions = f"PyHessian {pyhessian_version()}, curvlinops {curvlinops_version()}"
        sections: list[tuple[str, str, list[str]]] = [
            ("One product with the Hessian", "products", [products.table(r, self.blocks) for r in self.hessian]),
            ("Forty steps of Lanczos", "lanczos", [lanczos.table(forty) for forty in self.forties]),
            (
                "One product with the Gauss-Newton matrix", "products",
                [products.table(r, self.blocks) for r in self.gauss_newton],
            ),
            ("The largest eigenvalues, to the same residual", "eigenpairs", [*map(eigenpairs.table, self.eigenpairs)]),
            ("The trace, to one percent", "traces", [*map(traces.table, self.traces)]),
            ("The largest eigenvalue along training", "tracking", [*map(tracking.table, self.tracking)]),
            ("The spectral density, from forty steps", "density", [*map(density.table, self.density)]),
        ]  # fmt: skip
        parts = [
            "# Curvature products and estimators\n",
            f"{versions}, hessian-eigenthings {eigenthings_version()}. Medians of interleaved repeats, fewer where a "
            "row takes long. TF32 is off.\n",
            f"![cost per vector]({name}.png)\n",
        ]
        for title, table, texts in sections:
            parts += [f"## {title}\n", f"{self.where.get(table, 'Not measured')}.\n", *texts]
        return [*parts, "## What must hold\n", checklist.table(self.lines())]
