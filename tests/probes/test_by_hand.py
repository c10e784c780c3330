"""What a loop may call itself: `step`, `log` and `measure_now`."""

import pytest
import torch

from line_loops import sgd, update
from losscope.landscape import SettingError
from losscope.probes import Stability, watch
from probe_cases import Line, checksum_of, records

# --------------------------------------------------------------------------- driven by hand


def test_driven_by_hand() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(every=2, drive="manual")) as run:
        for _ in range(5):
            run.log(loss=update(line, optimizer))
            run.step()
    line.note(0.1)  # after the last update a measurement of the weights before the next one may be due
    assert records(run) == [n for n in line.noted if n[0] % 2 == 0]
    assert run.steps == 5


def test_driven_by_hand_an_optimizer_that_takes_no_hooks() -> None:
    line = Line()
    inner = sgd(line)

    class Foreign:
        param_groups, zero_grad = inner.param_groups, inner.zero_grad

        def step(self) -> None:
            inner.step()

    with pytest.raises(SettingError, match="manual"):
        watch(line.model, Foreign(), **line.options())
    with watch(line.model, Foreign(), **line.options(drive="manual")) as run:
        update(line, Foreign())  # type: ignore[arg-type]
        run.step()
    assert [step for step, _, _ in records(run)] == [0, 1]


def test_driven_by_hand_the_motion_along_the_top_eigenvector_is_followed_too() -> None:
    found = []
    for drive in ("hooks", "manual"):
        line = Line()
        optimizer = sgd(line, lr=0.4, momentum=0.0)
        with watch(line.model, optimizer, **line.options(drive=drive, probes=[Stability()], every=[0])) as run:
            for _ in range(12):
                update(line, optimizer)
                if drive == "manual":
                    run.step()
        turns = [(r.step, r.values["flips"], r.values["pairs"]) for r in run.run.select("oscillation")]
        found.append(turns)  # swings of a motion without any are rounding
    assert found[0] == found[1] and len(found[0]) == 1


def test_a_step_by_hand_is_refused_where_hooks_drive() -> None:
    line = Line()
    with watch(line.model, sgd(line), **line.options()) as run, pytest.raises(SettingError, match="manual"):
        run.step()


# --------------------------------------------------------------------------- logging and measuring by hand


def test_logged_values_belong_to_the_last_update() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(every=[99])) as run:
        for i in range(3):
            loss = update(line, optimizer)
            run.log(loss=loss)
            run.log(accuracy=i / 10, loss_twice=torch.tensor(2 * loss))
        run.log(step=40, validation=0.5)
    logs = run.run.select("log")
    assert [(r.step, sorted(r.values)) for r in logs] == [
        *((t, ["accuracy", "loss", "loss_twice"]) for t in range(3)), (40, ["validation"]),
    ]  # fmt: skip
    assert run.run.logged("accuracy")[1].tolist() == [0.0, 0.1, 0.2]


def test_what_is_no_number_is_not_logged() -> None:
    line = Line()
    with watch(line.model, sgd(line), **line.options()) as run:
        for value in ("high", torch.ones(2)):
            with pytest.raises(SettingError, match="loss"):
                run.log(loss=value)


def test_measuring_now_has_the_weights_of_now_and_the_next_step() -> None:
    line = Line()
    optimizer = sgd(line)
    with watch(line.model, optimizer, **line.options(every=[1])) as run:
        for t in range(3):
            update(line, optimizer)
            (record,) = run.measure_now()
            assert (record.step, record.lr, record.value) == (t + 1, 0.1, checksum_of(line.model))
    assert [r.step for r in run.run.select("checksum")] == [1, 2, 3]
    assert run.run.select("checksum")[0].value == line.noted[1][2]


@pytest.mark.parametrize("method", ["log", "measure_now", "step"])
def test_what_the_loop_may_call_needs_an_open_watch(method: str) -> None:
    line = Line()
    run = watch(line.model, sgd(line), **line.options(drive="manual"))
    with pytest.raises(SettingError, match="new"):
        getattr(run, method)()
    with run:
        pass
    with pytest.raises(SettingError, match="closed"):
        getattr(run, method)()
    with pytest.raises(SettingError, match="once"), run:
        pass
