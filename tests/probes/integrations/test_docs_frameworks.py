"""The snippets of docs/frameworks.md run as pasted, given the names that they speak of."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import Run

PAGE = Path(__file__).resolve().parents[3] / "docs" / "frameworks.md"

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")


def snippets(heading: str) -> list[str]:
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)


def transformers_names() -> dict[str, Any]:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=1, pad_token_id=2
    )
    ids = torch.randint(3, 32, (16, 8))
    arguments = transformers.TrainingArguments(
        output_dir="trainer", max_steps=12, per_device_train_batch_size=4, use_cpu=True, report_to=[], disable_tqdm=True
    )
    return {
        "Trainer": transformers.Trainer, "language_model": transformers.GPT2LMHeadModel(config),
        "texts": [{"input_ids": row, "labels": row} for row in ids], "arguments": arguments,
    }  # fmt: skip


def lightning_names() -> dict[str, Any]:
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = TensorDataset(torch.randn(32, 6), torch.randint(0, 3, (32,)))
    return {"lightning": lightning, "module": Module(), "loader": DataLoader(data, batch_size=8), "nn": nn}


def sink_names() -> dict[str, Any]:
    pytest.importorskip("tensorboard")
    x, y = torch.randn(64, 4), torch.randn(64, 1)
    model = nn.Linear(4, 1)
    return {
        "x": x, "y": y, "model": model, "criterion": nn.MSELoss(),
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "train_loader": DataLoader(TensorDataset(x, y), batch_size=6),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("heading", "which", "names", "run"),
    [
        ("Frameworks", 0, transformers_names, "runs/trainer"),
        ("Frameworks", 1, lightning_names, "runs/lightning"),
        ("TensorBoard, Weights & Biases, other sinks", 0, sink_names, "runs/sinks"),
    ],
)
def test_snippet_runs(
    heading: str, which: int, names: Any, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(snippets(heading)[which], str(PAGE), "exec"), names())
    read = Run(run)
    assert read.status == "finished" and [r.step for r in read.select("sharpness")][:3] == [0, 5, 10]
