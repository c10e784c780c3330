"""Equal cells of a figure: how many there are beside each other, and that words fit into them."""

import pytest

from losscope.viz import style
from losscope.viz.cells import LEAST, cells, fit, grid


@pytest.mark.parametrize("width", [2.0, 3.4, 7.0, 11.7, 30.0])
@pytest.mark.parametrize("count", range(1, 14))
def test_a_grid_holds_them_all_and_no_row_is_empty(count: int, width: float) -> None:
    rows, columns = grid(count, width)
    assert rows * columns >= count > (rows - 1) * columns
    assert columns == 1 or width / columns >= LEAST[0]


def test_words_stay_within_their_cell_below_what_is_at_its_top() -> None:
    figure = style.blank((6.0, 4.0), layout=None)
    axes = cells(figure, 1, 2, 2, above=0.5)
    for ax, label in zip(axes, ("short", "a label\nof three\nlines"), strict=True):
        ax.set_ylabel(label, fontsize=20)
        ax.set_xlabel("below")
        ax.get_figure(root=False).colorbar(ax.scatter([1, 2], [1e6, 2e6], c=[0.0, 1.0]), ax=ax)
    fit(axes, [0.0, 1.0])
    for ax, head in zip(axes, (0.0, 1.0), strict=True):
        part = ax.get_figure(root=False)
        for each in part.axes:
            box = each.get_tightbbox()
            assert part.bbox.x0 <= box.x0 and box.x1 <= part.bbox.x1
            assert part.bbox.y0 <= box.y0 and box.y1 <= part.bbox.y1 - head * figure.dpi
        assert part.bbox.y1 <= (4.0 - 0.5 + 1e-6) * figure.dpi
    assert axes[0].get_window_extent().width > axes[1].get_window_extent().width
