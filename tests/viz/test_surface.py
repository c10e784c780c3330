"""Planes as contours: what is drawn, what is not, and whether it can be read."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from artists import entries, inside, line, texts
from drawn_planes import axes, bowl, cliff, even, likelihood, plane_of, rosenbrock, steep
from losscope.landscape import SettingError
from losscope.landscape.surface import Axis, Line, Plane
from losscope.viz import plot_surface
from losscope.viz.plane_marks import ellipse
from losscope.viz.surface import COLOURS

LOSSES = {"bowl": bowl, "rosenbrock": rosenbrock, "likelihood": likelihood, "steep": steep, "cliff": cliff}


def part(ax: Axes, gid: str) -> object:
    (found,) = [each for each in (*ax.collections, *ax.patches) if each.get_gid() == gid]
    return found


def parts(ax: Axes, gid: str) -> list[object]:
    return [each for each in (*ax.lines, *ax.texts, *ax.collections, *ax.patches) if each.get_gid() == gid]


def picture(ax: Axes) -> Callable[[float, float], np.ndarray]:
    """What is seen at a place of the picture, in RGB from 0 to 1."""
    canvas = FigureCanvasAgg(ax.get_figure())
    canvas.draw()
    image = np.asarray(canvas.buffer_rgba())

    def seen(x: float, y: float) -> np.ndarray:
        column, row = ax.transData.transform((x, y))
        return image[image.shape[0] - 1 - int(row), int(column), :3] / 255

    return seen


def band(ax: Axes, value: float) -> np.ndarray:
    bands = part(ax, "bands")
    return np.array(bands.cmap(bands.norm(value))[:3])


# --------------------------------------------------------------------------- values


def test_colours_are_those_of_the_values() -> None:
    plane = plane_of(bowl)
    ax = plot_surface(plane)
    seen = picture(ax)
    for x, y in [(0.7, 0.52), (-0.63, -0.31), (0.05, 0.87)]:
        z = float(bowl(torch.tensor([x, y], dtype=torch.float64)))
        assert np.abs(seen(x, y) - band(ax, z)).max() < 0.02
    contours = part(ax, "contours")
    for level, path in zip(contours.levels, contours.get_paths(), strict=True):
        if len(path.vertices):
            on = bowl(torch.tensor(path.vertices.T))
            assert (on - level).abs().max() < 0.03 * max(level, 0.5)


@pytest.mark.parametrize("refined", [0, 300])
def test_what_is_not_finite_is_hatched_and_never_interpolated(refined: int) -> None:
    plane = plane_of(cliff, refined=refined)
    ax = plot_surface(plane)
    contours, grey = part(ax, "contours"), np.array(to_rgb("#d8dee4"))
    cell = 2 / 30
    for path in contours.get_paths():
        at = torch.tensor(path.vertices.T)
        assert not (at[0] + 0.4 * at[1] > 0.9 + 1e-9).any()
        assert not ((at[0] < -0.75 - 1e-9) & (at[1] < -0.5 - 1e-9)).any()
    colour = picture(ax)
    for x, y in [(0.95, 0.9), (-0.97, -0.83)]:
        assert np.ptp(colour(x, y)) < 0.08  # grey: ground or hatch
    around = [colour(x, 0.9) for x in np.linspace(0.75, 0.97, 40)]
    assert sum(np.abs(c - grey).max() < 0.03 for c in around) > 10
    assert sum(np.abs(c - grey).max() > 0.15 for c in around) > 4  # the hatch
    # half a cell before the first NaN values are drawn, and a cell beyond them nothing is
    assert np.ptp(colour(0.9 - 1.6 * cell, 0.0)) > 0.08
    (said,) = [e for e in entries(ax) if e.startswith("NaN")]
    lost = int(plane.loss.isnan().sum())
    if not refined:
        assert said == f"NaN: {lost}, infinite: {int(plane.loss.isinf().sum())} of 961 points"
    else:
        more = plane.refined.values["loss"]
        infinite = int(plane.loss.isinf().sum() + more.isinf().sum())
        assert said == f"NaN: {lost + int(more.isnan().sum())}, infinite: {infinite} of 1,261 points"


def test_one_nan_takes_the_cells_around_it_only() -> None:
    plane = plane_of(bowl)
    plane.loss[10, 20] = math.nan
    ax = plot_surface(plane)
    x, y = float(plane.x[20]), float(plane.y[10])
    step = 2 / 30
    assert np.ptp(picture(ax)(x + 0.1 * step, y - 0.2 * step)) < 0.08
    assert np.ptp(picture(ax)(x + 1.3 * step, y)) > 0.08
    assert not parts(plot_surface(plane_of(bowl)), "holes")


def test_refined_points_are_used() -> None:
    """A pit that the grid misses is seen with the points in it."""

    def pit(c: torch.Tensor) -> torch.Tensor:
        return 1 + c[0] - 5 * torch.exp(-150 * ((c[0] - 0.5) ** 2 + (c[1] - 0.5) ** 2))

    coarse = plane_of(pit, even(-1, 1, 6), even(-1, 1, 6))
    fine = plane_of(pit, even(-1, 1, 6), even(-1, 1, 6), refined=3000)
    z = [picture(plot_surface(p, levels=[-6, -2, 0, 1, 2]))(0.5, 0.5) for p in (coarse, fine)]
    ax = plot_surface(fine, levels=[-6, -2, 0, 1, 2])
    assert np.abs(z[1] - band(ax, -3.0)).max() < 0.02
    assert np.abs(z[0] - band(ax, 1.5)).max() < 0.02


def test_metrics_scales_and_levels() -> None:
    plane = plane_of(bowl, radius=0.5, metrics={"accuracy": lambda c: 1 / (1 + bowl(c))})
    ax = plot_surface(plane, value="accuracy")
    assert not parts(ax, "model") and not parts(ax, "radius")  # they are the loss's
    (bar,) = ax.child_axes
    assert bar.get_ylabel() == "accuracy"
    assert part(plot_surface(plane, levels=[0.5, 1, 2]), "contours").levels.tolist() == [0.5, 1, 2]
    assert len(part(plot_surface(plane, levels=5, scale="linear"), "contours").levels) <= 7
    negative = plot_surface(plane_of(likelihood))
    assert negative.child_axes[0].get_ylabel() == "loss above its lowest, −512.3"
    with pytest.raises(SettingError, match="'loss', 'accuracy'"):
        plot_surface(plane, value="error")
    with pytest.raises(SettingError, match="levels"):
        plot_surface(plane, levels=[1.0, math.nan])
    with pytest.raises(SettingError, match="levels"):
        plot_surface(plane, levels=1)


# --------------------------------------------------------------------------- the local check


@pytest.mark.parametrize(("lengths", "cosine"), [((1.0, 1.0), 0.0), ((2.0, 0.5), 0.0), ((1.0, 1.3), 0.6)])
def test_the_radius_is_a_euclidean_length(lengths: tuple[float, float], cosine: float) -> None:
    plane = plane_of(bowl, radius=0.4, along=axes(*lengths, cosine))
    ax = plot_surface(plane)
    at = torch.tensor(np.stack(line(ax, "radius").get_data()))
    moved = torch.stack([axis.vector for axis in plane.axes]).T @ at
    torch.testing.assert_close(moved.norm(dim=0), torch.full((181,), 0.4, dtype=torch.float64))
    for path in part(ax, "model").get_paths():
        inner = torch.stack([axis.vector for axis in plane.axes]).T @ torch.tensor(path.vertices.T)
        assert (inner.norm(dim=0) <= 0.4 + 1e-6).all()


def test_the_models_contours_are_the_models_at_the_same_levels() -> None:
    plane = plane_of(bowl, radius=0.7)
    ax = plot_surface(plane)
    model, contours = part(ax, "model"), part(ax, "contours")
    assert model.levels.tolist() == contours.levels.tolist()
    drawn = 0
    for level, path in zip(model.levels, model.get_paths(), strict=True):
        if len(path.vertices):
            on = plane.model.at(*torch.tensor(path.vertices.T))
            assert (on - level).abs().max() < 0.01
            drawn += 1
    assert drawn >= 3
    assert {"quadratic model", "it holds to 10 % (radius 0.7)"} <= set(entries(ax))


def test_above_a_base_the_model_is_too() -> None:
    plane = plane_of(likelihood, radius=0.3)
    model = part(plot_surface(plane), "model")
    lowest = float(plane.loss.min())
    for level, path in zip(model.levels, model.get_paths(), strict=True):
        if len(path.vertices):
            on = plane.model.at(*torch.tensor(path.vertices.T))
            assert (on - lowest - level).abs().max() < 0.02 * level + 1e-3


def test_radii_of_zero_and_beyond_the_picture() -> None:
    nowhere = plot_surface(plane_of(bowl, radius=0.0))
    assert "quadratic model: to 10 % nowhere" in entries(nowhere)
    assert not parts(nowhere, "model") and not parts(nowhere, "radius")
    for radius in (50.0, math.inf):
        everywhere = plot_surface(plane_of(lambda c: c[0] ** 2 + 2 * c[1] ** 2 + 0.1, radius=radius))
        assert "quadratic model: to 10 % all over" in entries(everywhere)
        assert not parts(everywhere, "radius")
        extent = np.concatenate([p.vertices for p in part(everywhere, "model").get_paths() if len(p.vertices)])
        assert extent.min() < -0.95 and extent.max() > 0.95  # up to the frame
    assert not [e for e in entries(plot_surface(plane_of(bowl))) if "model" in e]


def test_ellipse_of_a_singular_gram_is_refused_by_name() -> None:
    with pytest.raises(np.linalg.LinAlgError):
        ellipse(np.ones((2, 2)), 1.0, np.ones(3), np.zeros(3))


# --------------------------------------------------------------------------- marks


def test_centre_points_and_trajectory() -> None:
    way = torch.stack([even(0.9, 0, 30), even(-0.8, 0, 30) ** 3], dim=1)
    plane = plane_of(
        bowl, points={"SGD": (0.0, 0.0), "Adam": (0.8, 0.1), "costs $5": (0.4, 0.7)}, trajectory=way,
        explained=torch.tensor([0.713, 0.184]),
    )  # fmt: skip
    ax = plot_surface(plane)
    assert line(ax, "center").get_xydata().tolist() == [[0, 0]]
    assert [p.get_xydata()[0].tolist() for p in parts(ax, "point")] == [[0.8, 0.1], [0.4, 0.7]]
    names = {t.get_text(): t.xy for t in parts(ax, "point-name")}
    assert names == {"SGD": (0, 0), "Adam": (0.8, 0.1), r"costs \$5": (0.4, 0.7)}
    np.testing.assert_allclose(line(ax, "trajectory").get_xydata(), way)
    first, last = (p.get_xydata()[0] for p in parts(ax, "end"))
    np.testing.assert_allclose([first, last], way[[0, -1]])
    arrows = parts(ax, "arrow")
    assert len(arrows) == 3
    for arrow in arrows:  # they point onward
        head, tail = np.array(arrow.xy), np.array(arrow.xyann)
        nearest = int((way - torch.tensor(head)).norm(dim=1).argmin())
        onward = (way[min(nearest + 1, 29)] - way[max(nearest - 1, 0)]).numpy()
        assert (head - tail) @ onward > 0
    assert "trajectory, 30 points from ○ to ■" in entries(ax)
    assert f"centre, loss {0.1}" in entries(ax)
    assert " ".join(ax.get_xlabel().split()) == "random 1, by filters (71.3 %) [unit: length 1]"


def test_a_trajectory_that_leaves_the_picture_says_so() -> None:
    way = torch.stack([even(3, 0, 20), even(0, 0, 20)], dim=1)
    ax = plot_surface(plane_of(bowl, trajectory=way))
    assert ax.get_xlim() == (-1, 1)
    assert "trajectory, 20 points from ○ to ■,\n13 of them outside" in entries(ax)
    still = plot_surface(plane_of(bowl, trajectory=torch.zeros(5, 2).double()))
    assert not parts(still, "arrow")
    broken = torch.stack([even(0.5, 0, 20), even(0, 0, 20)], dim=1)
    broken[7] = math.nan
    plot_surface(plane_of(bowl, trajectory=broken)).get_figure().draw_without_rendering()


# --------------------------------------------------------------------------- layout


def test_lengths_are_true_where_that_leaves_a_picture() -> None:
    assert plot_surface(plane_of(bowl, along=axes(2.0, 3.0))).get_aspect() == pytest.approx(1.5)
    assert plot_surface(plane_of(bowl)).get_aspect() == 1
    assert plot_surface(plane_of(bowl, y=even(-0.1, 0.1, 9))).get_aspect() == "auto"
    assert plot_surface(plane_of(bowl, along=axes(1, 1, 0.6))).get_aspect() == "auto"


def test_uneven_coordinates_lie_where_they_are() -> None:
    x = torch.cat([even(-1, -0.2, 5), even(-0.1, 0.1, 3), torch.tensor([0.15, 0.9, 1.0])]).double()
    ax = plot_surface(plane_of(lambda c: 2 + c[0] + 0 * c[1], x), levels=[1.0, 1.5, 2.5, 2.75])
    for level, path in zip((1.0, 1.5, 2.5, 2.75), part(ax, "contours").get_paths(), strict=True):
        if len(path.vertices):
            np.testing.assert_allclose(path.vertices[:, 0], level - 2, atol=1e-9)


def labels_apart(ax: Axes) -> int:
    """Assert that no two contour labels, nor a label and a name, lie on each other; how many labels there are."""
    ax.get_figure().draw_without_rendering()
    shown = [t for t in ax.texts if t.get_text()]
    centres = [np.array([(b := t.get_window_extent()).x0 + b.width / 2, b.y0 + b.height / 2]) for t in shown]
    for i, one in enumerate(centres):
        for other in centres[i + 1 :]:
            assert np.hypot(*(one - other)) > 8, [t.get_text() for t in shown]
    return len([t for t in shown if t.get_gid() == "level"])


@pytest.mark.parametrize("size", [(3.3, 3.4), (6.4, 5.2)])
@pytest.mark.parametrize("name", LOSSES)
def test_everything_is_inside_and_apart(name: str, size: tuple[float, float]) -> None:
    points = {"SGD": (0.0, 0.0), "Adam": (0.8, 0.1), "SAM": (0.4, 0.7)}
    way = torch.stack([even(0.9, 0, 300), even(-0.8, 0, 300) ** 3], dim=1)
    plane = plane_of(LOSSES[name], radius=0.4, points=points, trajectory=way, note="differences disagree " * 6)
    ax = plot_surface(plane, size=size)
    inside(ax.get_figure())
    assert labels_apart(ax) >= 2


def test_names_are_apart_and_inside_wherever_their_points_are() -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        points = {f"model {k}": tuple(rng.uniform(-0.95, 0.95, 2)) for k in range(4)}
        ax = plot_surface(plane_of(bowl, points=points), size=(4.5, 4.2))
        ax.get_figure().draw_without_rendering()
        frame, boxes = ax.get_window_extent().padded(2), [t.get_window_extent() for t in parts(ax, "point-name")]
        assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes)
        shared = [Bbox.intersection(one, other) for i, one in enumerate(boxes) for other in boxes[i + 1 :]]
        assert all(each.width * each.height < 0.1 * boxes[0].width * boxes[0].height for each in shared if each)


def test_labels_stand_on_their_contours() -> None:
    ax = plot_surface(plane_of(bowl), size=(6.4, 5.2))
    labels = parts(ax, "level")
    assert len(labels) >= 6
    for label in labels:
        x, y = label.get_position()
        assert float(bowl(torch.tensor([x, y]).double())) == pytest.approx(float(label.get_text()), rel=0.03)


def test_on_axes_of_the_user() -> None:
    figure = Figure()
    one, two = figure.subplots(1, 2)
    assert plot_surface(plane_of(bowl, radius=0.3), one) is one
    assert len(figure.axes) == 3  # the colour bar beside it
    assert figure.get_suptitle() == "" and two.get_xlabel() == ""


def test_axes_of_one_name_are_told_apart() -> None:
    u, v = axes()
    ax = plot_surface(plane_of(bowl, along=(u, dataclasses.replace(v, name=u.name))))
    assert [each.partition("[")[0].strip() for each in (ax.get_xlabel(), ax.get_ylabel())] == [
        f"{u.name} (1)",
        f"{u.name} (2)",
    ]


def test_a_long_name_is_wrapped_and_keeps_its_number() -> None:
    u, v = (dataclasses.replace(a, name=f"trajectory, component {k}") for k, a in enumerate(axes(), 1))
    plane = plane_of(bowl, y=even(-0.6, 0.6, 9), along=(u, v), explained=torch.tensor([0.961, 0.0343]))
    ax = plot_surface(plane, size=(3.3, 3.4))
    inside(ax.get_figure())
    assert "component 2" in " ".join(ax.get_ylabel().split()) and "(96.1 %)" in ax.get_xlabel()


@pytest.mark.parametrize("size", [(3.3, 3.4), (6.4, 6.0), (12.0, 6.0)])
def test_a_long_note_is_a_few_short_lines(size: tuple[float, float]) -> None:
    said = "differences and products differ along trajectory, component 1: the loss bends by 4.2, the Hessian by 3.9"
    shown = plot_surface(plane_of(bowl, note=said), size=size).get_figure().get_supxlabel()
    assert shown.replace("\n", " ") == said.partition(":")[0]
    figure = plot_surface(plane_of(bowl, note="much is to be said " * 40), size=size).get_figure()
    long = figure.get_supxlabel()
    assert long.count("\n") == 2 and long.startswith("much is to be said") and long.endswith("…")
    inside(figure)


def test_notes_are_shown() -> None:
    said = "stopped early; loss is NaN or infinite at 3 of 9 points"
    plane = plane_of(bowl, radius=0.1, note=said)
    model = dataclasses.replace(plane.model, note="differences disagree")
    figure = plot_surface(dataclasses.replace(plane, model=model)).get_figure()
    assert figure.get_supxlabel() == "stopped early (and 1 more: see note)"
    assert plot_surface(plane_of(bowl)).get_figure().get_supxlabel() == ""


# --------------------------------------------------------------------------- bad input


def test_planes_of_one_row_or_column_say_what_to_use() -> None:
    for x, y in ((even(-1, 1, 21), even(0, 0, 1)), (even(0, 0, 1), even(-1, 1, 21))):
        with pytest.raises(SettingError, match="plot_line"):
            plot_surface(plane_of(bowl, x, y))


def test_what_is_no_plane_is_refused() -> None:
    line = Line(even(-1, 1, 3), {"loss": even(0, 1, 3)}, 0.5, Axis(torch.ones(2)))
    with pytest.raises(SettingError, match="got Line: see plot_line"):
        plot_surface(line)


def test_nothing_finite_and_nothing_but_one_value() -> None:
    lost = plot_surface(plane_of(lambda c: c[0] * math.nan, along=axes()))
    assert "no finite values side by side" in texts(lost)
    assert "centre, loss NaN" in entries(lost)
    sparse = plane_of(bowl)
    checker = (torch.arange(31)[:, None] + torch.arange(31)) % 2 == 0
    sparse.loss[checker] = math.nan
    assert "no finite values side by side" in texts(plot_surface(sparse))
    flat = plot_surface(plane_of(lambda c: 0 * c[0] + 2.3, radius=0.2))
    assert np.abs(picture(flat)(0.7, 0.7) - band(flat, 2.3)).max() < 0.02
    zero = plot_surface(plane_of(lambda c: 0 * c[0]))
    zero.get_figure().draw_without_rendering()
    two = plot_surface(plane_of(bowl, even(-1, 1, 2), even(-1, 1, 2)))
    two.get_figure().draw_without_rendering()


def test_colours_darken_evenly() -> None:
    """So that it reads in grey: relative luminance falls all the way."""
    rgb = np.array([COLOURS(v)[:3] for v in np.linspace(0, 1, 12)])
    luminance = rgb**2.2 @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) < -0.03).all()


def test_a_gpu_result_or_one_in_float32_is_drawn() -> None:
    plane = plane_of(bowl)
    half = dataclasses.replace(plane, x=plane.x.float(), values={"loss": plane.loss.float().requires_grad_()})
    assert isinstance(half, Plane)
    plot_surface(half).get_figure().draw_without_rendering()
