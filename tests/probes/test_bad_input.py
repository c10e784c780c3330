"""Bad input is refused by `watch` before anything is measured or written, and says what to do."""

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.landscape import DataError, LosscopeError, LossError, ParameterError, RunError, SettingError
from losscope.probes import Player, Record, Run, Sharpness, Trace, watch

X, Y = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.zeros(8, 1)
MSE = nn.MSELoss()


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def is_plain(tensor: torch.Tensor) -> bool:
    return not tensor.is_meta and not torch.nn.parameter.is_lazy(tensor)


@pytest.fixture
def refused(tmp_path):
    """Calls `watch`, which must refuse: with this error, these words, and nothing written or changed."""

    def check(error, words, model=None, optimizer=None, **options):
        model = nn.Linear(3, 1) if model is None else model
        optimizer = sgd(model) if optimizer is None else optimizer
        options = {"data": (X, Y), "criterion": MSE, "out": tmp_path / "out" / "run"} | options
        before, rng = {k: v.clone() for k, v in model.state_dict().items() if is_plain(v)}, torch.get_rng_state()
        with pytest.raises(error, match=words) as caught:
            watch(model, optimizer, **{k: v for k, v in options.items() if v is not ...})
        assert isinstance(caught.value, LosscopeError)
        assert isinstance(caught.value, ValueError | RunError)
        assert not (tmp_path / "out").exists()
        assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
        assert torch.equal(rng, torch.get_rng_state())
        assert all(p.grad is None for p in model.parameters())

    return check


# --------------------------------------------------------------------------- parameters


def test_no_parameters(refused):
    frozen = nn.Linear(3, 1).requires_grad_(False)
    refused(ParameterError, "no parameter that requires gradients", frozen)
    refused(ParameterError, "matches params='encoder.*'.*weight, bias", params="encoder.*")
    refused(ParameterError, "no parameter", params=lambda name, p: False)
    refused(SettingError, "params must be a name pattern.*got Tensor", params=[torch.zeros(3)])
    refused(ParameterError, "moves none.*optimizer of another model", optimizer=sgd(nn.Linear(3, 1)))


def test_parameters_on_several_devices(refused):
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1, device="meta"))
    refused(ParameterError, "several devices.*cpu, meta.*params=", model)


def test_integer_parameters(refused):
    class Odd(nn.Linear):
        def __init__(self):
            super().__init__(3, 1)
            self.odd = nn.Parameter(torch.ones(2).long(), requires_grad=False)

    refused(ParameterError, "floating-point.*odd is torch.int64", Odd(), params="*")


def test_lazy_parameters(refused):
    model = nn.LazyLinear(1)
    refused(ParameterError, "not initialised yet.*forward pass", model)


def test_params_that_mean_nothing(refused):
    refused(SettingError, "params must be.*got int", params=3)


# --------------------------------------------------------------------------- the loss


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        (nn.MSELoss(reduction="none"), r"must return a scalar, got a tensor of shape \(8, 1\).*mean"),
        (lambda o, t: 3.0, "must return a scalar tensor, got float"),
        (lambda o, t: None, "must return a scalar tensor, got NoneType"),
        (lambda o, t: (o > 0).sum(), "floating-point scalar, got torch.int64"),
        (lambda o, t: MSE(o.detach(), t), "not connected to the selected parameters"),
        (lambda o, t: MSE(t, t), "not connected"),
    ],
)
def test_losses_that_are_no_scalar_function_of_the_parameters(refused, criterion, words):
    refused(LossError, words, criterion=criterion)


def test_a_loss_of_other_parameters(refused):
    model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(3, 1)})
    options = {"criterion": ..., "loss_fn": lambda m, batch: MSE(m["used"](batch[0]), batch[1])}
    refused(LossError, "does not depend on any of the 2 selected.*unused.weight", model, params="unused.*", **options)


def test_neither_or_both_losses(refused):
    refused(SettingError, "exactly one of criterion=.*got neither", criterion=...)
    refused(SettingError, "exactly one of criterion=.*got both", loss_fn=lambda m, b: MSE(m(b[0]), b[1]))
    refused(SettingError, "criterion must be callable, got str", criterion="mse")
    refused(SettingError, "forward= and targets= go with criterion=", criterion=..., loss_fn=MSE, forward=MSE)


def test_losses_that_are_not_finite_are_data_not_bad_input():
    model = nn.Linear(3, 1)
    watch(model, sgd(model), data=(X, Y * float("nan")), criterion=MSE)


# --------------------------------------------------------------------------- the data


def test_generators_are_read_once_only_and_are_refused_unread(refused):
    reads = []

    def batches(count):
        for i in range(count):
            reads.append(i)
            yield X, Y

    exhausted = batches(1)
    next(exhausted)
    assert list(exhausted) == []
    refused(DataError, "one-shot generator.*a list of batches or a DataLoader", data=exhausted)
    reads.clear()
    refused(DataError, "one-shot generator", data=batches(3))
    refused(DataError, "one-shot list_iterator", data=iter([(X, Y)]))
    refused(DataError, "one-shot", data=iter(DataLoader(TensorDataset(X, Y), batch_size=4)))
    assert reads == []


@pytest.mark.parametrize("data", [[], (), {}, range(0)])
def test_empty_data(refused, data):
    refused(DataError, "yielded no batch", data=data)


def test_arrays_of_numpy(refused):
    refused(DataError, "NumPy arrays.*torch.from_numpy", data=(X.numpy(), Y.numpy()))


def test_what_fails_in_the_loss_of_the_first_batch_says_where_it_was_called():
    model = nn.Linear(3, 1)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        watch(model, sgd(model), data=(X[:, :2], Y), criterion=MSE)
    assert caught.value.__notes__ == ["losscope: this is how the loss of 'model' fails on the first batch of data="]


@pytest.mark.parametrize("step", [-1, 2.5, "1", True])
def test_steps_that_are_none(step):
    model = nn.Linear(3, 1)
    with watch(model, sgd(model), data=(X, Y), criterion=MSE) as run, pytest.raises(SettingError, match="integer >= 0"):
        run.log(step=step, loss=1.0)


def test_an_empty_loader(refused):
    # torch refuses a shuffling loader of nothing itself; a plain one yields no batch.
    refused(DataError, "yielded no batch", data=DataLoader(TensorDataset(X[:0], Y[:0]), batch_size=4))


def test_data_that_is_not_batched(refused):
    refused(SettingError, "pass data=", data=None)
    refused(DataError, r"got a tensor of shape \(8, 3\).*data=\[\(inputs, targets\)\]", data=X)
    refused(DataError, "wrap it: DataLoader", data=TensorDataset(X, Y))
    refused(DataError, "iterable of batches, got int", data=3)


def test_a_weight_that_cannot_be_inferred(refused):
    loss = {"criterion": ..., "loss_fn": lambda m, b: MSE(m(b["x"]), b["y"])}
    refused(DataError, r"how many samples.*x: tensor \(8, 3\).*weight=", data={"x": X, "y": Y[:1]}, **loss)
    refused(DataError, "how many samples.*weight=", data=[{"x": X, "y": torch.tensor(0.0)}], **loss)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weights_that_mean_nothing(refused, weight):
    refused(DataError, "weight of a batch must be a finite number", weight=lambda batch: weight)


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "evaluate"}, "mode must be one of 'eval', 'train', 'train_frozen'; got 'evaluate'"),
        ({"mode": None}, "mode must be one of"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"every": 2.5}, "every must be a positive integer.*got 2.5"),
        ({"every": "epoch"}, "every must be a positive integer.*got 'epoch'"),
        ({"every": None}, "every must be"),
        ({"every": []}, "explicit steps must be"),
        ({"budget": 5}, r"budget is a share.*0\.05; got 5"),
        ({"budget": 0}, "budget is a share"),
        ({"budget": "5%"}, "budget is a share.*got '5%'"),
        ({"budget": float("nan")}, "budget is a share"),
        ({"drive": "auto"}, r"drive must be one of \('hooks', 'manual'\), got 'auto'"),
        ({"on_error": "ignore"}, r"on_error must be one of \('warn', 'raise'\), got 'ignore'"),
        ({"first_step": -1}, "first_step must be an integer >= 0, got -1"),
        ({"first_step": 1.0}, "first_step must be an integer"),
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a positive integer"),
        ({"batch_size": True}, "batch_size must be a positive integer"),
        ({"also": [3]}, "also= takes modules, got int"),
        ({"also": 3}, "also= takes modules, got int"),
        ({"seed": "a"}, "seed must be an integer, got 'a'"),
        ({"seed": None}, "seed must be an integer"),
        ({"out": 3}, "out must be a folder, as a string or a Path, or None; got int"),
        ({"sinks": "tensorboard"}, "a sink is a function.*got 'tensorboard'"),
        ({"sinks": 3}, "a sink is a function.*got int"),
        ({"criterion": nn.MSELoss}, r"criterion must be a function, got the class MSELoss: write MSELoss\(\)"),
        ({"loss": MSE}, "no option loss; of the objective: .*criterion"),
        ({"criterian": MSE, "freq": 3}, "no option criterian, freq"),
        ({"probes": [Sharpness]}, r"write Sharpness\(\) for Sharpness"),
        ({"probes": ["sharpness"]}, "a probe must be a Probe or a function"),
        ({"probes": "sharpness"}, "probes must be a list"),
        ({"probes": [Trace(), Sharpness(), Trace(rtol=0.5)]}, "distinct.*trace, sharpness, trace"),
        ({"kernel": "fast"}, "kernel must be one of 'auto', 'retained', .*'finite_difference'; got 'fast'"),
        ({"kernel": None}, "kernel must be one of .*got None"),
        ({"kernel": ["retained"]}, r"kernel must be one of .*got \['retained'\]"),
        ({"out": None, "resume": True}, "resume=True needs out="),
    ],
)
def test_options_that_mean_nothing(refused, options, words):
    refused(SettingError, words, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 0}, "k must be an integer of at least 1, got 0"),
        ({"k": 1.5}, "k must be an integer of at least 1, got 1.5"),
        ({"guards": "a"}, "guards must be an integer of at least 0, got 'a'"),
        ({"bound_every": 0}, "bound_every must be an integer of at least 1, got 0"),
        ({"tol": "a"}, "tol must be a number between 0 and 1, got 'a'"),
        ({"tol": 1.0}, "tol must be a number between 0 and 1, got 1.0"),
    ],
)
def test_sharpness_that_means_nothing(options, words):
    with pytest.raises(SettingError, match=words):
        Sharpness(**options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_finite_differences_in_half_precision(refused, dtype):
    data = (X.to(dtype), Y.to(dtype))
    words = f"finite differences need parameters in float32 or float64, weight is {dtype}.*retained"
    refused(SettingError, words, nn.Linear(3, 1).to(dtype), data=data, kernel="finite_difference")


def test_no_optimizer_and_things_that_are_none(refused):
    model = nn.Linear(3, 1)
    with pytest.raises(SettingError, match=r"watch\(model, optimizer"):
        watch(model, data=(X, Y), criterion=MSE)
    refused(SettingError, "optimizer must be a torch.optim.Optimizer.*got str", model, "sgd")
    refused(SettingError, "optimizer must be", model, [])
    refused(SettingError, "optimizer must be", model, list(model.parameters()))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_without_a_rate(refused, kind):
    model = nn.Linear(3, 1)
    optimizer = kind([{"params": [model.weight]}, {"params": [model.bias]}], lr=0.1)
    optimizer.param_groups[1]["lr"] = None
    refused(SettingError, f"learning rate of {kind.__name__} is None: set lr", model, optimizer)


def test_players():
    model = nn.Linear(3, 1)
    player = Player("a", model, sgd(model), (X, Y), criterion=MSE)
    with pytest.raises(SettingError, match="distinct names, got a, a"):
        watch([player, player])
    with pytest.raises(SettingError, match="a list of Player"):
        watch([])
    with pytest.raises(SettingError, match="a list of Player"):
        watch([model])
    with pytest.raises(SettingError, match=r"must be a torch.nn.Module or a list of Player.*got SGD"):
        watch(sgd(model), model, data=(X, Y), criterion=MSE)
    with pytest.raises(SettingError, match="got function"):
        watch(lambda x: x, sgd(model), data=(X, Y), criterion=MSE)
    with pytest.raises(SettingError, match="belong to each Player"):
        watch([player], criterion=MSE)
    with pytest.raises(SettingError, match=r"kernel.*belong to each Player"):
        watch([player], kernel="batched")
    with pytest.raises(SettingError, match="got 'fast'"):
        watch([Player("a", model, sgd(model), (X, Y), criterion=MSE, kernel="fast")])


def test_an_optimizer_without_hooks(refused):
    class Own:
        def __init__(self, model):
            self.param_groups = [{"params": list(model.parameters()), "lr": 0.1}]

    model = nn.Linear(3, 1)
    refused(SettingError, 'Own takes no step hooks; pass drive="manual"', model, Own(model))


def test_an_optimizer_that_another_watch_follows(tmp_path):
    model = nn.Linear(3, 1)
    optimizer = sgd(model)
    options = {"data": (X, Y), "criterion": MSE, "probes": [Sharpness()], "every": 1}
    with watch(model, optimizer, **options) as run:
        inner = watch(model, optimizer, out=tmp_path / "run", **options)
        with (
            pytest.raises(SettingError, match=r"another watch is following the SGD of 'model'.*several players"),
            inner,
        ):
            pass
        optimizer.step()
    assert not (tmp_path / "run").exists()
    assert [r.step for r in run.run.select("sharpness")] == [0]
    with watch(model, optimizer, **options) as later:
        optimizer.step()
    assert later.steps == 1


# --------------------------------------------------------------------------- the folder


def refuses_folder(out, words, **options):
    model = nn.Linear(3, 1)
    with pytest.raises(RunError, match=words):
        watch(model, sgd(model), data=(X, Y), criterion=MSE, out=out, **options)


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_is_not_ours(tmp_path, resume):
    (tmp_path / "notes.txt").write_text("mine")
    refuses_folder(tmp_path, "holds files that are not a losscope run; choose another folder", resume=resume)
    refuses_folder(tmp_path / "notes.txt", "is a file, expected a folder", resume=resume)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("notes.txt", "mine")]


def test_a_folder_that_holds_another_run(tmp_path):
    other = nn.Linear(3, 2)
    with watch(other, sgd(other), data=(X, torch.zeros(8, 2)), criterion=MSE, out=tmp_path / "run") as run:
        run.log(loss=1.0)
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    refuses_folder(tmp_path / "run", "holds a run already; choose another folder, or pass resume=True")
    refuses_folder(str(tmp_path / "run"), r"cannot resume.*holds another run \(it differs in model\)", resume=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before


# --------------------------------------------------------------------------- reading


def folder(path, meta, records=b"") -> None:
    path.mkdir()
    (path / "meta.json").write_bytes(meta if isinstance(meta, bytes) else json.dumps(meta).encode())
    (path / "records.jsonl").write_bytes(records)


GOOD = {"identity": {}, "players": {"model": {}}}


@pytest.mark.parametrize(
    "meta",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b"[]",
        b"3",
        b"null",
        b"{}",
        {"players": {}},
        {"identity": {}},
        GOOD | {"players": []},
    ],
)
def test_a_corrupt_or_foreign_description(tmp_path, meta):
    folder(tmp_path / "run", meta)
    with pytest.raises(RunError, match=r"meta\.json"):
        Run(tmp_path / "run")


def test_no_folder_or_no_run(tmp_path):
    with pytest.raises(RunError, match="no such folder"):
        Run(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"has no meta\.json"):
        Run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="no such folder"):
        Run(str(tmp_path / "file"))


@pytest.mark.parametrize("records", [b"rubbish\n", b"\x00\x01\n\x02\n", b"[]\n{}\n", b'{"step":1}\n'])
def test_records_of_which_none_is_one(tmp_path, records):
    folder(tmp_path / "run", GOOD, records)
    with pytest.raises(RunError, match="holds no readable record"):
        Run(tmp_path / "run")


def test_records_of_which_some_are_damaged(tmp_path):
    good = Record(3, "model", "sharpness", value=1.0).to_json().encode() + b"\n"
    folder(tmp_path / "run", GOOD, b"rubbish\n" + good + b"\xff" * 40 + b"\n" + good[:25])
    run = Run(tmp_path / "run")
    assert ([r.step for r in run.records], run.malformed) == ([3], 2)


def test_a_run_without_records_is_one(tmp_path):
    folder(tmp_path / "run", GOOD)
    assert Run(tmp_path / "run").records == []
    (tmp_path / "run" / "records.jsonl").unlink()
    run = Run(tmp_path / "run")
    assert (run.records, run.status) == ([], "running")
    assert {c.verdict for c in run.audit().criteria} == {"NOT_APPLICABLE"}
    assert len(run.to_pandas()) == 0
