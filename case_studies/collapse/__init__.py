"""Neural collapse: models whose features are free, and the figures; for neural_collapse.py."""
