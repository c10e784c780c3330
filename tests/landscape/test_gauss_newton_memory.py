"""What Gauss-Newton products of a large vocabulary take in memory."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

_PEAK = """
    import ctypes, gc, sys, torch
    from pathlib import Path
    from torch import nn
    from torch.nn import functional as F
    from losscope.landscape import GaussNewton, Objective

    tied, how = sys.argv[1:]
    words, width, tokens = 50_000, 64, 512

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x):
            q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.first(x)).chunk(3, -1))
            x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
            return x + self.mlp(self.second(x))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.place = nn.Embedding(words, width), nn.Embedding(tokens, width)
            self.body = nn.Sequential(Block(), Block(), nn.LayerNorm(width))
            self.head = nn.Linear(width, words, bias=False)
            if tied == "tied":
                self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.body(self.embed(x) + self.place.weight[: x.shape[1]]))

    def status(key):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024

    options = {
        "module": dict(
            criterion=nn.CrossEntropyLoss(),
            forward=lambda m, b: m(b[0]).flatten(0, 1),
            targets=lambda b: b[1].flatten(),
        ),
        "lambda": dict(criterion=lambda z, y: F.cross_entropy(z.view(-1, z.shape[-1]), y.view(-1))),
        "shifted": dict(criterion=lambda z, y: F.cross_entropy(z[:, :-1].flatten(0, 1), y[:, 1:].flatten())),
    }[how]
    shape = (4, tokens // 4)  # several sequences, so that shifted logits are no view
    objective = Objective(GPT(), (torch.randint(words, shape), torch.randint(words, shape)), **options)
    objective.batches
    torch.ones(64, 64, requires_grad=True).mm(torch.ones(64, 64)).sum().backward()
    V = torch.randn(objective.space.size, 1)

    def peak(measured):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        kept = measured()
        return status("VmHWM") - before

    forward = peak(lambda: objective.batch_loss(0))
    print(peak(lambda: GaussNewton(objective) @ V) - forward)
"""


def _peak(*arguments: str) -> int:
    """Bytes of resident memory that a product takes above what the forward pass does, in a process of its own."""
    command = [sys.executable, "-c", textwrap.dedent(_PEAK), *arguments]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # large blocks go back to the system at once
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("tied", "how"), [("tied", "module"), ("untied", "lambda"), ("tied", "shifted")])
def test_a_vocabulary_of_50_000_takes_less_than_three_times_its_logits(tied: str, how: str) -> None:
    logits = 512 * 50_000 * 4
    above = _peak(tied, how)
    assert above < 3 * logits, f"{above / logits:.2f} times the logits"
