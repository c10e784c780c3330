"""How colours look without one of the three kinds of cones, and in grey."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import to_rgb

# Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of color vision deficiency", IEEE
# TVCG 15, 2009: matrices on linear RGB for severity 1.
KINDS = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str, kind: str) -> np.ndarray:
    """A colour as it is seen, in linear RGB."""
    rgb = np.array(to_rgb(colour))
    rgb = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return np.clip(KINDS[kind] @ rgb, 0, 1)


def contrast(one: str, other: str, kind: str) -> float:
    """Ratio of the luminances as WCAG defines it, from 1 to 21."""
    a, b = sorted(float(XYZ[1] @ linear(colour, kind)) + 0.05 for colour in (one, other))
    return b / a


def distance(one: str, other: str, kind: str) -> float:
    """CIE 1976 difference; about 2.3 is just noticed."""
    a, b = (_lab(linear(colour, kind)) for colour in (one, other))
    return float(np.linalg.norm(a - b))


def _lab(rgb: np.ndarray) -> np.ndarray:
    t = XYZ @ rgb / (XYZ @ np.ones(3))
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])
