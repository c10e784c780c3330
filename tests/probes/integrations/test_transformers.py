"""The callback of Hugging Face's Trainer: training is what it was unwatched, and records are at its steps."""

import gc
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

os.environ.setdefault("HF_HUB_OFFLINE", "1")
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    DataCollatorForLanguageModeling,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from losscope.landscape import Hessian, LossError, Objective, SettingError, top_eigenpairs  # noqa: E402
from losscope.probes import NeuralCollapse, Run, Sharpness, Snapshot, Stability, Trace  # noqa: E402
from losscope.probes.integrations import lightning as lightning_side  # noqa: E402
from losscope.probes.integrations.transformers import WatchCallback, model_loss, tokens  # noqa: E402
from losscope.viz import plot_sharpness, plot_stability  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:losscope. .* is measured in mode=")
VOCABULARY = 32
# The option has changed its name.
CHECKPOINTING = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, n))


class Text(Dataset[dict[str, Tensor]]):
    """Padded sequences of random tokens; the second half of the items is only ones and twos."""

    def __init__(self, n: int = 48, length: int = 10) -> None:
        stream = torch.Generator().manual_seed(0)
        self.ids = torch.randint(3, VOCABULARY, (n, length), generator=stream)
        self.lengths = torch.randint(4, length + 1, (n,), generator=stream)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        mask = (torch.arange(self.ids.shape[1]) < self.lengths[i]).long()
        return {"input_ids": self.ids[i], "attention_mask": mask, "labels": self.ids[i].masked_fill(mask == 0, -100)}


class Sentences(Text):
    """With a class for each."""

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        item = super().__getitem__(i)
        return item | {"labels": self.ids[i, 0] % 3}


def gpt2() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1,
            pad_token_id=2,
        )
    )  # fmt: skip


def bert() -> nn.Module:
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=16, num_labels=3,
        )
    )  # fmt: skip


def trainer(
    out: Path, *callbacks: Any, model: Any = gpt2, data: Any = None, kind: type = Trainer, **options: Any
) -> Any:
    set_seed(0)
    settings: dict[str, Any] = {
        "output_dir": str(out), "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2,
        "logging_steps": 2, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True,
    }  # fmt: skip
    data = Text() if data is None else data
    return kind(model(), TrainingArguments(**settings | options), train_dataset=data, callbacks=list(callbacks))


def outcome(done: Any) -> list[Any]:
    """Weights, optimizer state, losses and where the random stream stands, as bytes or numbers."""
    losses = [entry[key] for entry in done.state.log_history for key in ("loss", "train_loss") if key in entry]
    state = [v for s in done.optimizer.state.values() for v in s.values() if isinstance(v, Tensor)]
    tensors = [*done.model.state_dict().values(), *state, torch.get_rng_state()]
    return [losses, *(t.numpy().tobytes() for t in tensors)]


class Counts(TrainerCallback):
    """What ``state.global_step`` is before each update, with the weights."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen[state.global_step] = float(sum(p.detach().double().sum() for p in kwargs["model"].parameters()))


def total(snapshot: Snapshot) -> dict[str, float]:
    return {"value": float(sum(p.detach().double().sum() for p in snapshot.model.parameters()))}


# --------------------------------------------------------------------------- whole trainings


@pytest.mark.parametrize(
    ("model", "data", "options", "probes"),
    [
        (gpt2, Text(), {"gradient_accumulation_steps": 2}, [Sharpness(), Trace(rtol=0.5), Stability(rtol=0.5)]),
        (gpt2, Text(), {"bf16": True, CHECKPOINTING: True, "dataloader_num_workers": 1}, [Sharpness()]),
        (bert, Sentences(), {"lr_scheduler_type": "cosine", "max_steps": 14}, [Sharpness(), total]),  # two epochs
    ],
    ids=["gpt2, accumulated", "gpt2, bf16", "bert"],
)
def test_a_watched_training_ends_with_the_same_bits(
    model: Any, data: Any, options: Any, probes: Any, tmp_path: Path
) -> None:  # fmt: skip
    plain = trainer(tmp_path / "a", model=model, data=data, **options)
    plain.train()
    expected = outcome(plain)
    callback = WatchCallback(every=2, out=tmp_path / "run", mode="train", probes=probes)
    watched = trainer(tmp_path / "b", callback, model=model, data=data, **options)
    watched.train()
    assert outcome(watched) == expected
    run = Run(tmp_path / "run")
    assert run.status == "finished" and run.meta["steps"] == {"model": watched.state.global_step}
    assert len(run.probes) >= len(probes)
    for probe in set(run.probes) - {"oscillation", "midpoint"}:
        assert [r.step for r in run.select(probe)] == list(range(0, watched.state.global_step, 2)), probe


def test_records_are_at_the_trainers_steps_and_what_it_logs_is_recorded(tmp_path: Path) -> None:
    counts = Counts()
    callback = WatchCallback(every=1, probes=[total])
    done = trainer(tmp_path, counts, callback, gradient_accumulation_steps=3, logging_steps=1)
    done.train()
    assert {r.step: r.value for r in callback.run.select("total")} == counts.seen
    assert sorted(counts.seen) == list(range(6))
    assert callback.run.meta["players"]["model"]["batch_size"] == 12
    steps, losses = callback.run.logged("loss")
    assert list(steps) == list(range(6))
    assert list(losses) == [entry["loss"] for entry in done.state.log_history if "loss" in entry]


def test_figures_are_made_from_a_run(tmp_path: Path) -> None:
    callback = WatchCallback(
        every=2, out=tmp_path / "run", mode="train", probes=[Sharpness(), Stability(level="sharpness")]
    )
    trainer(tmp_path / "a", callback, optim="sgd", learning_rate=0.1).train()
    run = Run(tmp_path / "run")
    assert len(run.select("sharpness")) == 3
    drawn = [line for ax in np.ravel(plot_sharpness(run)) for line in ax.lines]
    assert any(list(line.get_xdata()) == [0, 2, 4] for line in drawn)
    assert any(ax.lines for ax in np.ravel(plot_stability(run)))
    assert run.audit().criteria


# --------------------------------------------------------------------------- the objective


def test_the_default_loss_is_the_mean_over_the_tokens_that_count(tmp_path: Path) -> None:
    callback = WatchCallback(every=[0], probes=[lambda s: {"value": s.loss, "top": s.eigenpairs().values[0]}])
    items = [Text()[i] for i in range(0, 48, 3)]
    whole = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    done = trainer(tmp_path, callback, max_steps=1)
    model = done.model.eval()
    objective = Objective(model, [whole], loss_fn=lambda m, b: m(**b).loss)
    loss = float(objective.loss(model, whole).detach())
    top = top_eigenpairs(Hessian(objective), tol=1e-4, seed=0)
    done.train()
    (record,) = callback.run.records[:1]
    assert record.value == pytest.approx(loss, rel=1e-6)
    assert record.values["top"] == pytest.approx(float(top.values[0]), rel=2e-2)


def t5() -> nn.Module:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    )


@pytest.mark.parametrize(("model", "counted"), [(gpt2, 7), (t5, 8), (bert, 8)])
def test_weights_are_the_labels_that_count(model: Any, counted: int) -> None:
    labels = torch.tensor([[5, 6, 7, -100, -100], [5, 6, 7, 8, 9]])
    built = model()
    assert tokens(built)({"input_ids": labels, "labels": labels}) == (6 if counted == 7 else 8)
    if model is not bert:
        whole, parts = labels, [labels[:1], labels[1:]]
        built.eval()

        def loss(part: Tensor) -> float:
            return float(model_loss(built, {"input_ids": part.clamp_min(0), "labels": part}).detach())

        weights = [tokens(built)({"input_ids": p, "labels": p}) for p in parts]
        mean = sum(w * loss(p) for w, p in zip(weights, parts, strict=True)) / sum(weights)
        assert mean == pytest.approx(loss(whole), rel=1e-5)


def test_weights_without_labels_of_whole_numbers_are_samples() -> None:
    weight = tokens(gpt2())
    assert weight({"input_ids": torch.zeros(3, 5, dtype=torch.long)}) == 3
    assert weight({"input_ids": torch.zeros(3, 5), "labels": torch.zeros(3, 2)}) == 3
    assert weight({"input_ids": torch.zeros(3, 5), "labels": torch.tensor([1, -100, 0])}) == 2


def test_a_criterion_opens_the_outputs(tmp_path: Path) -> None:
    callback = WatchCallback(every=[0], criterion=nn.CrossEntropyLoss(), probes=[NeuralCollapse(), total])
    trainer(tmp_path, callback, model=bert, data=Sentences(), max_steps=1).train()
    (record,) = callback.run.select("neural_collapse")
    assert record.status == "ok"


def test_a_model_without_a_loss_is_refused(tmp_path: Path) -> None:
    bare = {"input_ids": torch.zeros(2, 4, dtype=torch.long)}
    with pytest.raises(LossError, match="gives no loss for a batch of input_ids"):
        trainer(tmp_path, WatchCallback(data=[bare])).train()


def test_another_loss_of_the_trainers_is_not_passed_over(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="label_smoothing_factor"):
        trainer(tmp_path, WatchCallback(), label_smoothing_factor=0.1).train()


# --------------------------------------------------------------------------- the data


def test_a_collator_with_a_stream_of_its_own_draws_on_as_if_unwatched(tmp_path: Path) -> None:
    class Tokenizer:
        mask_token, mask_token_id, pad_token_id, pad_token = "m", 2, 0, "p"

        def pad(self, features: Any, **_: Any) -> dict[str, Tensor]:
            return {"input_ids": torch.stack([f["input_ids"] for f in features])}

        def convert_tokens_to_ids(self, token: str) -> int:
            return self.mask_token_id

        def get_special_tokens_mask(self, ids: Any, **_: Any) -> list[int]:
            return [0] * len(ids)

        def __len__(self) -> int:
            return VOCABULARY

    def run(out: str, *callbacks: Any) -> list[Any]:
        done = trainer(tmp_path / out, *callbacks)
        done.data_collator = DataCollatorForLanguageModeling(Tokenizer(), mlm=True, seed=3)
        done.train()
        return outcome(done)

    assert run("b", callback := WatchCallback(every=2, probes=[Sharpness()])) == run("a")
    assert len(callback.run.select("sharpness")) == 3


def test_a_stream_of_data_must_be_replaced(tmp_path: Path) -> None:
    class Stream(IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Any:
            return iter([Text()[i] for i in range(48)])

    with pytest.raises(SettingError, match="samples of Stream cannot be picked; pass data="):
        trainer(tmp_path, WatchCallback(), data=Stream()).train()


# --------------------------------------------------------------------------- ends


class Stops(TrainerCallback):
    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            if self.error is not None:
                raise self.error
            control.should_training_stop = True


def hooks(optimizer: Any) -> int:
    return sum(len(table) for name, table in vars(optimizer.optimizer).items() if name.endswith("_hooks"))


def test_a_training_that_stops_early(tmp_path: Path) -> None:
    callback = WatchCallback(every=1, probes=[total])
    done = trainer(tmp_path, Stops(None), callback)
    done.train()
    assert callback.run.status == "finished" and len(callback.run.select("total")) == 3
    assert hooks(done.optimizer) == 0


@pytest.mark.parametrize("error", [ArithmeticError("on purpose"), KeyboardInterrupt("on purpose")], ids=repr)
def test_a_training_that_raises_within_the_callbacks_context(error: BaseException, tmp_path: Path) -> None:
    callback = WatchCallback(every=1, out=tmp_path / "run", probes=[total])
    done = trainer(tmp_path / "a", callback, Stops(error))

    def train() -> None:
        with callback:
            done.train()

    with pytest.raises(type(error)) as caught:
        train()
    assert caught.value is error
    run = Run(tmp_path / "run")
    assert run.status == "failed" and run.meta["reason"] == f"{type(error).__name__}: on purpose"
    assert len(run.select("total")) == 3 and hooks(done.optimizer) == 0


def test_a_training_that_raises_and_is_dropped_or_begun_again(tmp_path: Path) -> None:
    def fails(out: Path) -> tuple[Any, Any]:
        callback = WatchCallback(every=1, out=out, probes=[total])
        done = trainer(tmp_path / "a", callback, Stops(ArithmeticError("on purpose")))
        with pytest.raises(ArithmeticError):
            done.train()
        assert Run(out).status == "running" and len(Run(out).select("total")) == 3
        return done, callback

    done, callback = fails(tmp_path / "dropped")
    optimizer = done.optimizer
    del done, callback
    gc.collect()
    assert Run(tmp_path / "dropped").status == "failed" and hooks(optimizer) == 0

    done, _ = fails(tmp_path / "again")
    done.pop_callback(Stops)
    done.train()
    assert Run(tmp_path / "again").status == "finished" and len(Run(tmp_path / "again").select("total")) == 6


def test_resuming_from_a_checkpoint_goes_on(tmp_path: Path) -> None:
    def make(*callbacks: Any, **options: Any) -> Any:
        return trainer(tmp_path / "a", *callbacks, save_strategy="steps", save_steps=3, **options)

    options: dict[str, Any] = {"every": 2, "mode": "train", "probes": [Sharpness(), total]}
    whole = make(callback := WatchCallback(**options))
    whole.train()
    expected = callback.run

    out = tmp_path / "run"
    make(WatchCallback(out=out, **options), Stops(None)).train()
    assert [r.step for r in Run(out).select("total")] == [0, 2]
    resumed = make(WatchCallback(out=out, **options))
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    run = Run(out)
    assert outcome(resumed)[1:] == outcome(whole)[1:]
    for probe in ("total", "sharpness"):  # from where it stood, warm starts included
        assert [(r.step, r.value) for r in run.select(probe)] == [(r.step, r.value) for r in expected.select(probe)]
    assert run.meta["steps"] == {"model": 6}


# --------------------------------------------------------------------------- bad input


def test_options_that_are_the_trainers() -> None:
    for options in ({"drive": "manual"}, {"resume": True}, {"first_step": 3}):
        with pytest.raises(SettingError, match=f"{next(iter(options))}= is not for the callback: the Trainer trains"):
            WatchCallback(**options)
    with pytest.raises(SettingError, match="it begins with the Trainer's training"):
        _ = WatchCallback().run


def test_lightnings_callback_names_this_one(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"from losscope.probes.integrations.transformers import WatchCallback"):
        trainer(tmp_path, lightning_side.WatchCallback(criterion=nn.MSELoss()))


def test_router_logits_that_hooks_of_transformers_collect_are_part_of_the_loss() -> None:
    sizes = {"vocab_size": 12, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 3, "num_experts_per_tok": 2}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**sizes, **heads, output_router_logits=True, router_aux_loss_coef=1.0))
    ids = torch.randint(12, (2, 5))
    batch = {"input_ids": ids, "labels": ids}
    objective = Objective(model, [batch], loss_fn=model_loss, weight=lambda _: 1)
    expected = model_loss(model.eval(), batch).detach()
    assert objective.value() == pytest.approx(float(expected), rel=1e-6)
    assert float(model_loss(model, {**batch, "output_router_logits": False}).detach()) < float(expected) - 0.1
