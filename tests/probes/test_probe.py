import numpy as np
import pytest
import torch
from torch import nn

from losscope.landscape import SettingError
from losscope.probes import Measurement, Needs, Probe, Sharpness, Stability, Trace, watch
from losscope.probes.probe import as_probe, as_probes


def measured(function) -> Measurement:
    return as_probe(function).measure(None)


# --------------------------------------------------------------------------- needs


def test_needs_merge_to_the_strictest():
    a, b = Needs(3, 1e-2, 400, None), Needs(1, 1e-3, 200, 0.1)
    assert a | b == b | a == Needs(3, 1e-3, 200, 0.1)
    assert a | Needs() == a
    assert Needs() | Needs() == Needs()


def test_what_the_probes_need():
    merged = Sharpness(4, tol=1e-3, bound_every=50).needs() | Trace(rtol=0.05).needs() | Stability(rtol=0.2).needs()
    assert merged == Needs(4, 1e-3, 50, 0.05, trace_matvecs=100, training_gradient=True, seen=True, midpoint=True)
    assert Stability(level="sharpness").needs() == Needs(1, 1e-2, 200, training_gradient=True, seen=True)


def test_guards_are_followed_from_one_measurement_to_the_next():
    """In steps that exchange the top two directions, the next start already holds the second."""
    assert (Sharpness(2, guards=1).needs() | Sharpness(guards=3).needs()).guards == 3
    scale = torch.tensor([[3.0, 2.9, 1.0, 0.5]])
    model = nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    found = {}
    for guards in (0, 1):
        data = (torch.diag(scale[0]), torch.zeros(4, 1))
        with watch(
            model, optimizer, data=data, criterion=nn.MSELoss(), probes=[Sharpness(tol=1e-3, guards=guards)]
        ) as run:
            first = run.measure_now()[0]
            data[0][1, 1] = 3.1  # the second overtakes the first
            found[guards] = run.measure_now()[0]
        assert first.value == pytest.approx(4.5, rel=1e-3)
    assert found[1].value == pytest.approx(3.1**2 / 2, rel=1e-5)
    assert found[1].matvecs % 2 == 0
    assert found[1].value >= found[0].value - 1e-6


def test_shared_quantities_are_computed_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (torch.randn(8, 3), torch.randn(8, 2))

    def matvecs(*probes) -> dict[str, int]:
        with watch(model, optimizer, data=data, criterion=nn.MSELoss(), probes=probes) as run:
            return {r.probe: r.matvecs for r in run.measure_now()}

    alone = matvecs(Stability())
    together = matvecs(Sharpness(), Trace(), Stability())
    assert alone["stability"] > 0
    assert together["stability"] <= 20  # the other two have paid, but for the lower end of the spectrum
    assert abs(sum(together.values()) - alone["stability"]) <= 5  # the trace comes first there, and helps


# --------------------------------------------------------------------------- a user's function


def test_what_a_function_returns_is_sorted():
    def mine(snapshot):
        return {
            "value": torch.tensor(2.0), "low": 1, "high": np.float32(3), "unit": "curvature", "accuracy": 0.5,
            "right": True, "count": np.int64(7), "half": torch.tensor(0.25, dtype=torch.bfloat16),
            "spectrum": torch.arange(3.0, requires_grad=True), "table": np.ones((2, 2)), "list": [1, 2, 3],
        }  # fmt: skip

    probe = as_probe(mine)
    assert probe.name == "mine"
    assert probe.schedule is None
    result = probe.measure(None)
    assert (result.value, result.low, result.high, result.unit) == (2.0, 1.0, 3.0, "curvature")
    assert result.values == {"accuracy": 0.5, "right": 1.0, "count": 7.0, "half": 0.25}
    assert {name: array.shape for name, array in result.arrays.items()} == {
        "spectrum": (3,), "table": (2, 2), "list": (3,),
    }  # fmt: skip


def test_a_value_of_several_numbers_is_an_array():
    result = measured(lambda snapshot: {"value": np.ones(3)})
    assert result.value is None
    assert list(result.arrays) == ["value"]
    assert measured(lambda snapshot: {}) == Measurement()


@pytest.mark.parametrize("returned", [None, 3.0, [1, 2], (1,), "x"])
def test_anything_but_a_dict_is_refused(returned):
    with pytest.raises(SettingError, match=f"must return a dict, got {type(returned).__name__}"):
        measured(lambda snapshot: returned)


@pytest.mark.parametrize("content", ["text", object(), 1 + 2j, {"a": 1}, None, np.array(["a"]), [[1], [1, 2]]])
def test_what_is_no_number_is_named(content):
    with pytest.raises(SettingError, match="returned 'what' of type"):
        measured(lambda snapshot: {"what": content})


def test_a_callable_object_is_named_by_its_class():
    class Counter:
        def __call__(self, snapshot):
            return {"value": 1}

    assert as_probe(Counter()).name == "Counter"


# --------------------------------------------------------------------------- the list of probes


def test_a_single_probe_or_function_will_do():
    assert [p.name for p in as_probes(Sharpness())] == ["sharpness"]
    assert [p.name for p in as_probes(measured)] == ["measured"]
    assert [p.name for p in as_probes(p for p in (Trace(), measured))] == ["trace", "measured"]
    assert as_probes([]) == []


def test_a_probe_class_is_not_a_probe():
    with pytest.raises(SettingError, match=r"write Sharpness\(\) for Sharpness"):
        as_probes([Sharpness])
    with pytest.raises(SettingError, match=r"write Sharpness\(\)"):
        as_probes(Sharpness)


@pytest.mark.parametrize("wrong", [3, "sharpness", None])
def test_what_is_no_probe_is_refused(wrong):
    with pytest.raises(SettingError, match="a probe must be a Probe or a function"):
        as_probes([wrong])


def test_probes_that_are_no_list_are_refused():
    with pytest.raises(SettingError, match="probes"):
        as_probes(3)


def test_names_are_distinct_and_not_taken():
    with pytest.raises(SettingError, match=r"distinct.*sharpness, trace, sharpness"):
        as_probes([Sharpness(), Trace(), Sharpness(2)])
    for name in ("log", "midpoint", "oscillation"):

        def function(snapshot):
            return {}

        function.__name__ = name
        with pytest.raises(SettingError, match="not 'log', 'midpoint' or 'oscillation'"):
            as_probes([function])


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Sharpness, {"k": 0}), (Sharpness, {"tol": 0}), (Sharpness, {"tol": 1.5}), (Sharpness, {"bound_every": 0}),
        (Trace, {"rtol": 0}), (Trace, {"rtol": -1}), (Trace, {"rtol": float("nan")}),
        (Stability, {"tol": 0}), (Stability, {"rtol": 0}), (Stability, {"bound_every": 0}),
        (Sharpness, {"every": 0}), (Trace, {"every": "often"}), (Stability, {"every": []}),
    ],
)  # fmt: skip
def test_options_that_mean_nothing_are_refused(cls, options):
    with pytest.raises(SettingError):
        cls(**options)


def test_a_probe_of_ones_own_class():
    class Norm(Probe):
        name = "norm"

        def measure(self, snapshot):
            return Measurement(snapshot.gradient_norm, unit="loss")

    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = (torch.randn(4, 2), torch.zeros(4, 1))
    with watch(model, optimizer, data=data, criterion=nn.MSELoss(), probes=[Norm(every=3)], every=1) as run:
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(data[0]), data[1]).backward()
            optimizer.step()
    assert [r.step for r in run.run.select("norm")] == [0, 3]
    with pytest.raises(NotImplementedError):
        Probe().measure(None)
