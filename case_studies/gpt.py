"""A GPT of 10.8 million parameters on Python's own sources, watched: sharpness, trace, spectrum and stability.

The loop has the shape of nanoGPT's: batches of bytes drawn at random, gradients accumulated over micro-batches under
bfloat16 autocast, clipped, AdamW with linear warm-up and half a cosine. What is measured is the loss of one fixed
batch in float32. With a budget the measurements take at most that share of the time.

    pip install "losscope[transformers]"
    python case_studies/gpt.py --out runs/gpt            # minutes on four cores
    python case_studies/gpt.py --quick                   # a small one, ten seconds
"""

from __future__ import annotations

import argparse
import math
import random
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from losscope.probes import Run, Sharpness, Spectrum, Stability, Trace, watch
from losscope.viz import figure

WARM_UP, CLIP, BYTES = 20, 1.0, 256


@dataclass(frozen=True)
class Size:
    """How large, and how long."""

    width: int = 384
    layers: int = 6
    heads: int = 6
    block: int = 64
    batch: int = 4
    accumulation: int = 4
    steps: int = 200
    rate: float = 1e-3


FULL, QUICK = Size(), Size(width=32, layers=2, heads=2, block=32, steps=60, accumulation=2, rate=3e-3)


def sources(limit: int = 8_000_000) -> Tensor:
    """The modules of Python's standard library, one after another in a fixed order, as bytes (n,)."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    random.Random(0).shuffle(files)
    text = b"".join(path.read_bytes() for path in files)[:limit]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()


def drawn(text: Tensor, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch of pieces of the text; the model shifts the labels by itself."""
    starts = torch.randint(len(text) - size.block, (size.batch,), generator=generator).tolist()
    tokens = torch.stack([text[i : i + size.block] for i in starts])
    return {"input_ids": tokens, "labels": tokens}


def gpt(size: Size) -> nn.Module:
    """GPT-2 from config, with random weights and without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=BYTES, n_positions=size.block, n_embd=size.width, n_layer=size.layers, n_head=size.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).train()


def rate_at(step: int, size: Size) -> float:
    """Linear warm-up, then half a cosine down to a tenth."""
    if step < WARM_UP:
        return size.rate * (step + 1) / WARM_UP
    share = (step - WARM_UP) / max(1, size.steps - WARM_UP)
    return size.rate * (0.55 + 0.45 * math.cos(math.pi * share))


def probes(steps: int) -> list[Any]:
    """The sharpness often, for it is cheap from a warm start; the spectrum three times."""
    fifth = max(1, steps // 5)
    return [
        Sharpness(every=max(1, steps // 20)),
        Stability(level="sharpness", every=fifth),
        Trace(rtol=0.3, max_matvecs=12, every=fifth),
        Spectrum(vectors=1, steps=20, outliers=4, every=2 * fifth),
    ]


def train(size: Size, out: Path | None = None, seed: int = 0, budget: float | None = None) -> Run:
    """Train, watched."""
    torch.manual_seed(seed)
    model, text = gpt(size), sources()
    train_text, held_out = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
    groups = [
        {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=size.rate, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(seed)
    fixed = [drawn(train_text, size, generator)]
    check = [drawn(held_out, size, generator) for _ in range(8)]
    batch = drawn(train_text, size, generator)
    with watch(
        model, optimizer, data=fixed, loss_fn=lambda model, batch: model(**batch).loss, mode="train", out=out,
        weight=lambda batch: batch["labels"][:, 1:].numel(), probes=probes(size.steps), budget=budget,
        batch_size=size.batch * size.accumulation,
    ) as run:  # fmt: skip
        for step in range(size.steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, size)
            total = 0.0
            for _ in range(size.accumulation):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = model(**batch).loss / size.accumulation
                batch = drawn(train_text, size, generator)  # the next one, before the backward pass
                loss.backward()
                total += loss.item()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            run.log(loss=total)
            if step % 25 == 0 or step == size.steps - 1:
                with torch.no_grad():
                    held = sum(model(**b).loss.item() for b in check) / len(check)
                run.log(held_out=held)
                print(f"step {step:4}: loss {total:.3f}, held out {held:.3f}", flush=True)
    return run.run


def check(run: Run) -> None:
    """Whether every measurement succeeded, and the model has learned more than the frequencies of bytes.

    Raises:
        AssertionError: if not.
    """
    failed = [(r.step, r.probe, r.reason) for r in run.records if r.status != "ok"]
    assert not failed, failed
    assert {r.probe for r in run.records} >= {"sharpness", "stability", "trace", "spectrum"}
    first, last = (run.logged("held_out")[1][i] for i in (0, -1))
    assert last < first and last < 3.3, (first, last)  # nats a byte; the entropy of single bytes here is about 3.2


def main() -> None:
    """Train, print what was measured, check it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and 60 updates")
    parser.add_argument(
        "--out", type=Path, default=None, help="folder of the run and its figure (default: keep it in memory)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and batches (default 0)")
    parser.add_argument("--budget", type=float, default=None, help="share of the time that measuring may take")
    options = parser.parse_args()
    run = train(QUICK if options.quick else FULL, options.out, options.seed, options.budget)
    print(f"{run.meta['players']['model']['parameters']} parameters")
    for probe in ("sharpness", "trace"):
        line = ", ".join(f"{r.step}: {r.value:.4g}" for r in run.select(probe) if r.value is not None)
        print(f"{probe} at step {line}")
    for criterion in run.audit().criteria:
        ratio = "-" if criterion.ratio is None else f"{criterion.ratio:.3f}"
        print(f"  {criterion.name:20} {ratio:>8}: {criterion.verdict} ({criterion.reason})")
    if options.out is not None:
        figure(run, "dashboard").savefig(options.out / "dashboard.png", dpi=110)
    cost = run.meta["cost"]
    print(f"measuring took {cost['seconds_measuring']:.0f} of {cost['seconds_total']:.0f} s")
    check(run)


if __name__ == "__main__":
    main()
