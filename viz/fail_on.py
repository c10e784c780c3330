"""Which verdicts make ``losscope audit`` exit with 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from losscope.landscape import SettingError
from losscope.probes import Audit

from .words import VERDICTS

__all__ = ["FailOn"]

NEVER, EMPIRICAL = "never", "empirical"


@dataclass(frozen=True)
class FailOn:
    """Verdicts that fail an audit.

    Attributes:
        verdicts: those that do, of any criterion; ``NOT_APPLICABLE`` only where no criterion applies.
        empirical: whether criteria that are only seen to hold in experiments count.
    """

    verdicts: frozenset[str]
    empirical: bool = False

    @classmethod
    def parse(cls, text: str) -> FailOn:
        """Read ``"above_edge,at_edge"``, in either case; ``"never"``; with ``"empirical"`` to count such criteria.

        Raises:
            SettingError: for words that are none of these.

        Example:
            >>> from losscope.viz.fail_on import FailOn
            >>> sorted(FailOn.parse("above_edge,at_edge").verdicts)
            ['ABOVE_EDGE', 'AT_EDGE']
        """
        words = [word.strip().lower().replace("-", "_") for word in text.split(",") if word.strip()]
        known = {code.lower() for code in VERDICTS}
        if unknown := [word for word in words if word not in {*known, NEVER, EMPIRICAL}]:
            raise SettingError(
                f"--fail-on has no {', '.join(unknown)}; it takes {', '.join(sorted(known))} (several with commas), "
                f"{EMPIRICAL} beside them, or {NEVER}"
            )
        verdicts = frozenset(word.upper() for word in words if word in known)
        if bool(verdicts) == (NEVER in words):
            raise SettingError(f"--fail-on takes verdicts, or {NEVER} alone; got {text!r}")
        return cls(verdicts, EMPIRICAL in words)

    def fails(self, audits: Sequence[Audit]) -> bool:
        """Whether any of the audits does."""
        return any(self._one(audit) for audit in audits)

    def _one(self, audit: Audit) -> bool:
        applies = [line for line in audit.criteria if line.verdict != "NOT_APPLICABLE"]
        if not applies:
            return "NOT_APPLICABLE" in self.verdicts
        return any(line.verdict in self.verdicts and (self.empirical or line.kind != "empirical") for line in applies)
