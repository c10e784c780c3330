"""Data, networks and figures of hessian_outliers.py and batch_size.py."""
