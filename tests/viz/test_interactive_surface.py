"""The plotly surface: what is in its traces."""

import json
import math

import numpy as np
import pytest
import torch

from drawn_planes import axes, bowl, cliff, even, likelihood, plane_of, steep
from losscope.landscape import SettingError
from losscope.viz import interactive_surface

pytest.importorskip("plotly")


def strict(figure: object) -> dict:
    return json.loads(figure.to_json(), parse_constant=lambda name: pytest.fail(f"bare {name}"))


def test_the_surface_is_the_planes() -> None:
    plane = plane_of(
        bowl, even(-1, 1, 21), even(-0.5, 0.5, 11), along=axes(2.0, 3.0), explained=torch.tensor([0.7, 0.2])
    )
    figure = interactive_surface(plane, scale="linear", title="<b>")
    surface = figure.data[0]
    np.testing.assert_allclose(surface.z, plane.loss)
    np.testing.assert_allclose(surface.x, plane.x)
    assert surface.text.shape == (11, 21)
    assert surface.text[3][4] == f"(-0.6, -0.2)<br>loss {float(plane.loss[3, 4]):.5g}"
    scene = figure.layout.scene
    assert scene.xaxis.title.text == "random 1, by filters (70 %)<br>[unit: length 2]"
    assert (scene.aspectratio.x, scene.aspectratio.y) == pytest.approx((1, 1.5 / 2))
    assert scene.zaxis.title.text == "loss" and figure.layout.title.text == "&lt;b>"
    strict(figure)


@pytest.mark.parametrize("loss", [bowl, steep, likelihood])
def test_heights_are_those_of_the_scale(loss: object) -> None:
    plane = plane_of(loss)
    figure = interactive_surface(plane, scale="log")
    base = min(float(plane.loss.min()), 0.0)
    z = np.array(figure.data[0].z)
    above = 10 ** z[z > z.min()]
    expected = np.sort((plane.loss.numpy() - base).ravel())
    np.testing.assert_allclose(np.sort(above)[:800], expected[-len(above) :][:800], rtol=1e-9)
    ticks = np.array(figure.layout.scene.zaxis.tickvals)
    assert figure.layout.scene.zaxis.ticktext[0] == figure.data[0].colorbar.ticktext[0]
    assert len(ticks) >= 4 and (np.diff(ticks) > 0).all()


def test_holes_are_holes() -> None:
    plane = plane_of(cliff)
    surface = interactive_surface(plane).data[0]
    lost = ~plane.loss.isfinite().numpy()
    assert (np.array([[z is None for z in row] for row in surface.z]) == lost).all()
    assert surface.connectgaps is False
    fine = plane_of(cliff, refined=200)
    mesh = interactive_surface(fine).data[0]
    assert mesh.type == "mesh3d"
    corners = np.stack([mesh.i, mesh.j, mesh.k])
    assert np.isfinite(np.array(mesh.z, dtype=float)[corners]).all()
    assert len(mesh.x) == 31 * 31 + 200
    x, y = np.array(mesh.x), np.array(mesh.y)
    assert (x[corners] + 0.4 * y[corners] <= 0.9 + 1e-9).all()
    strict(interactive_surface(fine))
    nothing = interactive_surface(plane_of(lambda c: c[0] * math.nan, along=axes()))
    strict(nothing)


def test_trajectory_and_points_lie_on_the_surface() -> None:
    way = torch.stack([even(3, 0, 20), even(0, 0, 20)], dim=1)
    plane = plane_of(bowl, trajectory=way, points={"SGD": (0.0, 0.0), "A<b>": (0.5, 0.5)})
    surface, path, marks = interactive_surface(plane, scale="linear").data
    height = np.array(surface.z).max() - np.array(surface.z).min()
    outside = way[:, 0] > 1
    assert [z is None for z in path.z] == outside.tolist()
    for x, y, z in zip(path.x, path.y, path.z, strict=True):
        if z is not None:
            assert z == pytest.approx(float(bowl(torch.tensor([x, y]))), abs=0.03 * height)
    assert list(marks.text) == ["centre, SGD", "A&lt;b>"]
    assert marks.z[0] == pytest.approx(0.1, abs=0.02 * height)
    assert marks.customdata[0] == "0.1"


def test_the_model_is_a_sheet_as_far_as_it_holds() -> None:
    plane = plane_of(bowl, radius=0.4, along=axes(1.0, 2.0))
    *_, sheet = interactive_surface(plane, scale="linear").data
    x, y = np.array(sheet.x), np.array(sheet.y)
    lengths = np.hypot(x, 2 * y)
    assert lengths.max() == pytest.approx(0.4)
    q = plane.model.at(torch.tensor(x), torch.tensor(y)).numpy()
    height = float(plane.loss.max() - plane.loss.min())
    z = np.array(sheet.z, dtype=float)
    assert np.abs(z - q)[np.isfinite(z)].max() < 0.005 * height and np.isfinite(z).mean() > 0.9
    assert sheet.opacity < 1 and "holds to 10 % up to radius 0.4" in sheet.name
    assert len(interactive_surface(plane, model=False).data) == 2
    assert len(interactive_surface(plane_of(bowl, radius=0.0)).data) == 2
    far = interactive_surface(plane_of(bowl, radius=math.inf)).data[-1]
    inside = np.isfinite(np.array(far.z, dtype=float))
    assert np.abs(np.array(far.x)[inside]).max() <= 1 and inside.any()


def test_bad_input_is_named() -> None:
    with pytest.raises(SettingError, match="got str"):
        interactive_surface("plane")
    with pytest.raises(SettingError, match="plot_line"):
        interactive_surface(plane_of(bowl, even(0, 0, 1)))
