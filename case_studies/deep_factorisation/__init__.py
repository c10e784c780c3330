"""Deep matrix factorisation: minimisers, measurements at and from them, figures; for matrix_factorisation.py."""
