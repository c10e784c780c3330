"""Hessian-vector product engines, all ``(n, k) -> (n, k)``."""
