"""A probe that asks for the midpoint of three successive weights."""

from typing import Any

from losscope.probes import Measurement, Needs, Probe, Snapshot


class Asking(Probe):
    """Measures the sharpness, and asks for the midpoint's."""

    name = "asking"

    def __init__(self, every: Any = None, *, curvature: bool = True, tol: float = 1e-3) -> None:
        super().__init__(every)
        self.curvature, self.tol = curvature, tol

    def needs(self) -> Needs:
        return Needs(int(self.curvature), self.tol, seen=self.curvature, midpoint=True)

    def measure(self, snapshot: Snapshot) -> Measurement:
        if not self.curvature:
            return Measurement(values={"loss": snapshot.loss})
        seen = snapshot.seen_pair(self.tol)
        pairs = snapshot.eigenpairs() if seen is None else seen[1]
        return Measurement(
            float(pairs.values[0]), values={"loss": snapshot.loss, "gradient_norm": snapshot.gradient_norm}
        )
