"""
Several runs
============

The same training at three rates. Each sharpness goes to the threshold of its own rate: the larger the rate, the
flatter the place where training settles.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from losscope.probes import Sharpness, watch
from losscope.viz import plot_multiples, plot_overlay

digits = load_digits()
x = torch.tensor(digits.data[:300], dtype=torch.float32) / 16
y = nn.functional.one_hot(torch.tensor(digits.target[:300])).float()
criterion = nn.MSELoss()


def train(rate):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with watch(model, optimizer, data=(x, y), criterion=criterion, every=10, probes=[Sharpness()]) as watched:
        for _ in range(500):
            optimizer.zero_grad()
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            watched.log(loss=loss)
    return watched.run


runs = {f"lr {rate}": train(rate) for rate in (0.8, 1.0, 1.2)}
plot_overlay(runs)

# %%
# Anything that was recorded or logged can be laid over each other.

plot_overlay(runs, "loss")

# %%
# Or a panel for each of them.

plot_multiples(runs)
