"""The edge of stability: optimizers over rates, both flows, CIFAR-10; for edge_of_stability.py."""
