"""The audit as plain dictionaries: everything it says, under keys that stay."""

import dataclasses
import json
import math

import pytest

from audited_runs import FULL, audit_of, steady
from drawn_runs import hovering, meta, minibatch, run_of
from losscope.landscape import RunError
from losscope.probes import Assumption, Audit, Criterion
from losscope.probes.audit_json import AUDIT_VERSION, audit_as_dict, run_audit_as_dict, strict
from losscope.probes.catalogue import CATALOGUE
from losscope.probes.phases import phases

LINE = {
    "name", "symbol", "kind", "verdict", "reason", "formula", "measured", "low", "high", "threshold", "ratio",
    "ratio_low", "ratio_high", "assumptions", "says", "derived", "source",
}  # fmt: skip
AUDIT = {
    "player",
    "steps",
    "measurements",
    "criteria",
    "evidence",
    "note",
    "preconditions",
    "observations",
    "above_edge",
}


def test_the_keys_that_machines_rely_on():
    found = audit_as_dict(audit_of(steady(1.3), **FULL))
    assert set(found) >= AUDIT and AUDIT_VERSION == 1
    assert list(found["criteria"]) == list(CATALOGUE)
    assert all(set(line) == LINE for line in found["criteria"].values())
    assert found["above_edge"] is True and found["criteria"]["sharpness"]["verdict"] == "ABOVE_EDGE"


def test_everything_the_audit_says_comes_back():
    audit = audit_of(steady(0.6, s_mu=8.0), batch_size=32)
    audit = dataclasses.replace(audit, preconditions=(Assumption("squared", True),), observations=("seen",))
    found = json.loads(json.dumps(audit_as_dict(audit), allow_nan=False))
    assert found["preconditions"] == [{"text": "squared", "holds": True}] and found["observations"] == ["seen"]
    names = {f.name for f in dataclasses.fields(Criterion)}
    lines = tuple(
        Criterion(**{k: v for k, v in line.items() if k in names} | {"assumptions": _assumptions(line)})
        for line in found["criteria"].values()
    )
    assert lines == audit.criteria
    assert tuple(found["steps"]) == audit.steps


def _assumptions(line: dict) -> tuple[Assumption, ...]:
    return tuple(Assumption(**each) for each in line["assumptions"])


def test_of_numbers_that_are_none():
    line = Criterion("mine", "x", "empirical", "INCONCLUSIVE", "?", measured=math.nan, high=math.inf, low=-math.inf)
    found = audit_as_dict(Audit("model", None, 0, (line,), ""))["criteria"]["mine"]
    assert found["measured"] is found["high"] is found["low"] is found["says"] is None
    assert strict({1: (math.nan, [1, "x", None, True])}) == {"1": [None, [1, "x", None, True]]}


def test_a_run_with_players():
    run = run_of([*hovering(player="G"), *minibatch(player="D")], G={}, D={"batch_size": 32})
    found = run_audit_as_dict(run)
    assert (found["v"], found["run"], found["status"], found["reason"]) == (1, "run", "finished", None)
    shaded = {name: found["players"][name].pop("phases") for name in "GD"}
    assert shaded == {name: [dataclasses.asdict(phase) for phase in phases(run, name)] for name in "GD"}
    assert found["players"] == {name: audit_as_dict(run.audit(name)) for name in "GD"}
    assert list(run_audit_as_dict(run, ["D"])["players"]) == ["D"]
    assert meta(G={})["players"]  # the run is not changed
    with pytest.raises(RunError, match="no player"):
        run_audit_as_dict(run, ["E"])
