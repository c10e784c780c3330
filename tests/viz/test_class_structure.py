"""The picture of what classes make of the Gauss-Newton matrix."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from artists import inside, line
from drawn_results import classes_of
from losscope.landscape import GaussNewton, Objective, SettingError, top_eigenpairs
from losscope.landscape.class_structure import ClassStructure, class_structure
from losscope.viz import plot_class_structure


def structure(classes: int, samples: int = 60) -> tuple[ClassStructure, Objective]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, classes))
    y = torch.arange(samples) % classes
    x = torch.randn(samples, 5) + 2 * torch.randn(classes, 5)[y]
    objective = Objective(model, (x, y), criterion=nn.CrossEntropyLoss())
    return class_structure(objective, seed=0), objective


@pytest.fixture(scope="module")
def three() -> tuple[ClassStructure, Objective]:
    return structure(3)


def test_points_are_the_eigenvalues(three: tuple[ClassStructure, Objective]) -> None:
    found, objective = three
    pairs = top_eigenpairs(GaussNewton(objective), k=6, seed=0)
    left, right = plot_class_structure(found, eigenvalues=pairs)
    assert line(left, "Gauss-Newton matrix").get_ydata().tolist() == pairs.values.tolist()
    for name, values in (
        ("pair means", found.pair_values), ("class part", found.class_values), ("cross-class part", found.cross_values),
    ):  # fmt: skip
        drawn = line(left, name).get_ydata()
        kept = np.isfinite(drawn)
        np.testing.assert_allclose(drawn[kept], values.sort(descending=True).values.numpy()[: len(drawn)][kept])
        assert kept[: len(values)].any()
    assert [t.get_text() for t in right.texts] == ["0", "1", "2"]
    for c, text in enumerate(right.texts):
        assert text.get_position() == pytest.approx(found.class_means[c, :2].tolist())
    dots = [s for s in right.collections if s.get_gid() == "pairs"]
    assert [len(s.get_offsets()) for s in dots] == [2, 2, 2]
    np.testing.assert_allclose(dots[0].get_offsets(), found.pair_means[0, 1:, :2])


def test_shares_are_in_the_legend(three: tuple[ClassStructure, Objective]) -> None:
    found, _ = three
    left, _ = plot_class_structure(found)
    said = [t.get_text() for t in left.get_legend().get_texts()]
    assert said[0].startswith(f"pair means ({100 * (1 - found.shares['within'].value):.0f} ")
    assert said[1] == f"class part ({found.shares['class'].value:.0%})"


@pytest.mark.parametrize("classes", [2, 3, 12, 25])
@pytest.mark.parametrize("size", [(6.8, 3.6), (3.3, 6.0)])
def test_any_number_of_classes_fits(classes: int, size: tuple[float, float]) -> None:
    left, right = plot_class_structure(structure(classes)[0], size=size)
    inside(left.get_figure())
    assert len([t for t in right.texts if t.get_gid() == "class"]) == (classes if classes <= 20 else 0)


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_ranks_and_eigenvalues_have_ticks_that_are_read(classes: int) -> None:
    ax = plot_class_structure(classes_of(classes))[0]
    ax.figure.draw_without_rendering()
    low, high = ax.get_xlim()
    ranks = [t.label1.get_text() for t in ax.xaxis.get_major_ticks() if low <= t.get_loc() <= high]
    assert ranks[0] == "1" and len(ranks) >= 2
    assert not any("times" in label.get_text() for label in ax.get_yticklabels(minor=True))


def test_on_axes_of_the_user(three: tuple[ClassStructure, Objective]) -> None:
    one, two, other = Figure().subplots(3, 1)
    assert plot_class_structure(three[0], one) is one
    assert [*plot_class_structure(three[0], (two, other))] == [two, other]
    with pytest.raises(SettingError, match="two"):
        plot_class_structure(three[0], (one, two, other))


def test_what_is_no_class_structure() -> None:
    with pytest.raises(SettingError, match=r"a ClassStructure \(of class_structure\), got NoneType"):
        plot_class_structure(None)
