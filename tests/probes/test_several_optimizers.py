"""Several optimizers, of one model or of several players: what one step of them is."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from line_loops import sgd, update
from losscope.probes import Player, Stability, watch
from probe_cases import Line, checksum, records

# --------------------------------------------------------------------------- several optimizers, one model


def body_and_head(line: Line) -> list[torch.optim.Optimizer]:
    body = torch.optim.SGD(line.model[0].parameters(), lr=0.1)  # type: ignore[index, union-attr]
    head = torch.optim.Adam(line.model[1].parameters(), lr=0.1)  # type: ignore[index, union-attr]
    return [body, head]


@pytest.mark.parametrize("period", [1, 5], ids=["both each time", "the second every fifth time"])
def test_two_optimizers_are_one_step_per_round(period: int) -> None:
    line = Line()
    body, head = body_and_head(line)
    options = line.options(probes=[checksum, Stability(rtol=0.9)], batch_size=4)
    with watch(line.model, [body, head], **options) as run:
        for i in range(11):
            body.zero_grad(), head.zero_grad()
            loss = line.loss()
            loss.backward()
            line.note(0.1)
            body.step()
            if i % period == 0:
                head.step()
            run.log(loss=loss)
    assert records(run) == line.noted
    assert run.run.meta["steps"] == {"model": 11}
    assert run.run.logged("loss")[0].tolist() == list(range(11))
    assert {c.verdict for c in run.run.audit().criteria} == {"NOT_APPLICABLE"}
    assert "optimizers" in run.run.audit()["sharpness"].reason


def test_two_optimizers_of_which_the_first_rests() -> None:
    """The one that steps less often comes first in the loop: a round may begin with either."""
    line = Line()
    body, head = body_and_head(line)
    with watch(line.model, [body, head], **line.options()) as run:
        for i in range(4):
            line.loss().backward()
            if i % 2 == 0:
                body.step()
            head.step()
    assert run.steps == 4 and [step for step, _, _ in records(run)] == [0, 1, 2, 3]


def test_measuring_now_in_a_round_that_may_be_over() -> None:
    """The second optimizer has not stepped, and may not: the weights are those before the next update."""
    line = Line()
    body, head = body_and_head(line)
    with watch(line.model, [body, head], **line.options(every=[99])) as run:
        for i in range(3):
            line.loss().backward()
            body.step()
            assert [r.step for r in run.measure_now()] == [i + 1]
    assert run.run.meta["steps"] == {"model": 3}


# --------------------------------------------------------------------------- two players


def test_two_players_count_their_own_steps() -> None:
    first, second = Line(), Line()
    optimizers = [sgd(first), sgd(second, lr=0.01)]
    players = [
        Player(name, line.model, optimizer, line.data, criterion=F.mse_loss)
        for name, line, optimizer in zip("ab", (first, second), optimizers, strict=True)
    ]
    with watch(players, probes=[checksum], every=2) as run:
        for i in range(3):
            loss = update(first, optimizers[0])
            run.log(loss=loss)
            for _ in range(2):
                loss = update(second, optimizers[1])
                run.log(loss=loss, player="b")
            assert run.steps == i + 1
    assert records(run, "a") == [n for n in first.noted if n[0] % 2 == 0]
    assert records(run, "b") == [n for n in second.noted if n[0] % 2 == 0]
    assert run.run.meta["steps"] == {"a": 3, "b": 6}
    assert run.run.logged("loss", "b")[0].tolist() == list(range(6))
    assert set(run.run.to_pandas()["player"]) == {"a", "b"}


def test_a_player_that_depends_on_the_other_gets_no_verdict() -> None:
    first, second = Line(), Line()
    optimizers = [sgd(first), sgd(second)]

    def against(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(batch[0]), second.model(batch[0]))

    players = [
        Player("a", first.model, optimizers[0], first.data, 4, loss_fn=against),
        Player("b", second.model, optimizers[1], second.data, 4, criterion=F.mse_loss),
    ]
    with watch(players, probes=[Stability(rtol=0.9)], every=1) as run:
        for line, optimizer in zip((first, second), optimizers, strict=True):
            update(line, optimizer)
    assert {c.verdict for c in run.run.audit("a").criteria} == {"NOT_APPLICABLE"}
    assert run.run.audit("b")["sharpness"].verdict != "NOT_APPLICABLE"
