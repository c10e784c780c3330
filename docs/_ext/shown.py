"""How a value is shown on a page: figures as images, what knows its HTML as that, everything else as text."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.artist import Artist
from matplotlib.figure import Figure

DOTS = 144  # per inch: sharp on dense screens; pages show figures at their own size, 96 to the inch, or narrower


def figure_of(value: Any) -> Figure | None:
    """The matplotlib figure that a value is, or that axes belong to."""
    if isinstance(value, np.ndarray | list | tuple) and len(value):
        value = np.ravel(np.asarray(value, dtype=object))[0]
    if isinstance(value, Figure):
        return value
    found = value.get_figure(root=True) if isinstance(value, Artist) else None
    return found if isinstance(found, Figure) else None


def save(figure: Figure, path: Path) -> int:
    """Write a figure, and return the width in CSS pixels that it is to be shown at."""
    figure.savefig(path, dpi=DOTS, facecolor="white")
    return round(figure.get_size_inches()[0] * 96)


def is_plotly(value: Any) -> bool:
    """Whether it is a figure to turn and hover over."""
    return type(value).__module__.startswith("plotly.") and hasattr(value, "to_html")


def plotly_html(value: Any, script: str) -> str:
    """The figure's part of a page that loads plotly from ``script``, a file of these pages."""
    own = value.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return f'<script src="{script}"></script>\n{own}'


def write_plotly(folder: Path) -> None:
    """Put the installed plotly's own script among the static files."""
    import plotly

    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "plotly.min.js"
    if not target.exists():
        shutil.copy(Path(plotly.__file__).parent / "package_data" / "plotly.min.js", target)


def settle(gallery_conf: dict[str, Any], name: str) -> None:
    """What every example and every page starts from, whatever came before it."""
    import torch

    plt.close("all")
    plt.rcdefaults()
    warnings.formatwarning = lambda message, kind, *_, **__: f"{kind.__name__}: {message}\n"  # paths of this machine
    torch.manual_seed(0)
    torch.set_num_threads(1)


class GalleryScraper:
    """Images for sphinx-gallery of the figures that a block has made, whether or not pyplot knows of them."""

    def __repr__(self) -> str:
        return "GalleryScraper()"  # sphinx-gallery writes it down; no address, which would change with every build

    def __call__(self, block: tuple[Any, ...], variables: dict[str, Any], gallery_conf: dict[str, Any]) -> str:
        from sphinx_gallery.scrapers import figure_rst

        names = variables["example_globals"]
        seen = names.setdefault("__figures_shown__", {})
        paths = variables["image_path_iterator"]
        rst = ""
        for value in [names.get("___"), *names.values()]:
            if is_plotly(value) and id(value) not in seen:
                seen[id(value)] = value
                rst += self.interactive(value, gallery_conf)
            figure = figure_of(value)
            if figure is None or id(figure) in seen:
                continue
            seen[id(figure)] = figure
            path = Path(next(paths))
            save(figure, path)
            rst += figure_rst([str(path)], gallery_conf["src_dir"])
        plt.close("all")
        return rst

    @staticmethod
    def interactive(value: Any, gallery_conf: dict[str, Any]) -> str:
        """Raw HTML, indented for reStructuredText."""
        html = plotly_html(value, "../_static/plotly.min.js")
        return "\n\n.. raw:: html\n\n" + "\n".join(f"    {line}" for line in html.splitlines()) + "\n\n"
