"""The tangent kernel: a network that lazy training fails, and the figures; for tangent_kernel.py."""
