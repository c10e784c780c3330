"""Runs of drawn records, and their audits."""

from typing import Any

from drawn_runs import run_of
from losscope.probes import Audit, Record

FULL = {"batch_size": 1000, "samples": 1000}
SMALL = {"batch_size": 32, "samples": 1000}
SINGLE = {"batch_size": 1, "samples": 1000, "outputs": 1}
UNSET = {"batch_size": None}

SAME: Any = object()


def stability(
    step: int, ratio: float, lr: float = 0.1, *, width: float | None = 0.05, largest: float | None = None,
    trace: float = 30.0, s_mu: float | None = 5.0, threshold: float | None = SAME, s_mu_width: float = 0.05,
    rate: float | None = SAME,
) -> Record:  # fmt: skip
    """One stability measurement whose sharpness is ``ratio`` times 2/lr; ``width`` None: no upper bound."""
    limit = 2 / lr if threshold is SAME else threshold
    sharpness = ratio * 2 / lr
    high = None if width is None else sharpness * (1 + width)
    values: dict[str, float | None] = {
        "sharpness": sharpness, "sharpness_low": sharpness * (1 - (width or 0.01)), "sharpness_high": high,
        "threshold": limit, "threshold_largest": largest or limit, "loss": 0.1, "gradient_norm": 0.5,
        "trace": trace, "trace_low": trace * 0.95, "trace_high": trace * 1.05,
    }  # fmt: skip
    if rate is not None:
        values |= {"two_over_lr": 2 / lr, "one_over_lr": 1 / lr}
    if s_mu is not None:
        values |= noise(s_mu, s_mu_width)
    return Record(
        step, "model", "stability", lr=lr, unit="threshold", values=values,
        value=None if limit is None else sharpness / limit,
        high=None if limit is None or high is None else high / limit,
    )  # fmt: skip


def noise(value: float, width: float = 0.05) -> dict[str, float | None]:
    """All numbers that a measurement takes from mini-batches, in ratio to their thresholds what S_mu is to its own."""
    found: dict[str, float | None] = {}
    for name in ("s_mu", "aligned_trace", "batch_sharpness", "batch_sharpness_ratio", "interaction_aware",
                 "noise_interaction", "frobenius"):  # fmt: skip
        unit = value / 2 if name == "frobenius" else value  # against 1/lr
        found |= {name: unit, f"{name}_low": unit * (1 - width), f"{name}_high": unit * (1 + width)}
    return found


def steady(ratio: float, steps: int = 12, **options: Any) -> list[Record]:
    return [stability(50 * i, ratio, **options) for i in range(steps)]


def flips(share: float, steps: int = 12) -> list[Record]:
    return [
        Record(50 * i, "model", "oscillation", values={"flips": 6.0 * share, "pairs": 6.0}) for i in range(steps)
    ]  # fmt: skip


def audit_of(records: list[Record], **facts: Any) -> Audit:
    return run_of(records, model=facts).audit()


def verdicts(audit: Audit, *names: str) -> dict[str, str]:
    """Those of the lines of these names, of all without any."""
    return {c.name: c.verdict for c in audit.criteria if not names or c.name in names}


def with_gradient(records: list[Record], cosine: float, scale: float = 1.0) -> list[Record]:
    """The same records, in which the gradient of each step was compared with that of the data."""
    for record in records:
        record.values.update(gradient_cosine=cosine, gradient_scale=scale)
    return records
