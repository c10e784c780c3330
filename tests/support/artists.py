"""Looking into figures: their lines, texts and legends."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D


def line(ax: Axes, gid: str) -> Line2D:
    (found,) = [each for each in ax.lines if each.get_gid() == gid]
    return found


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def entries(ax: Axes) -> list[str]:
    legends = [each for each in (ax.get_legend(), *ax.get_figure(root=True).legends) if each]
    return [text.get_text() for text in legends[0].get_texts()] if legends else []


def inside(figure: Figure) -> None:
    """Assert that every title, label, legend entry and annotation lies within the figure."""
    figure.draw_without_rendering()
    written = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    for ax in figure.axes:
        legend = ax.get_legend()
        written += [*ax.texts, ax.title, ax.xaxis.label, ax.yaxis.label, *(legend.get_texts() if legend else ())]
    frame = figure.bbox.padded(1)
    for text in written:
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1, text
