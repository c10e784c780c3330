"""Hessian-vector product engines, all ``(n, k) -> (n, k)``, and the choice between them."""

from .agreement import Agreement, agreement
from .choice import KERNELS, Candidate, Choice, choose

__all__ = ["KERNELS", "Agreement", "Candidate", "Choice", "agreement", "choose"]
