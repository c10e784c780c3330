"""What the stability of SGD selects: linear models, networks with known traces, real runs; for sgd_stability.py."""
