"""
Paths between models
====================

Two networks from different starts have a barrier between them on the straight line. It nearly goes once the hidden
units of one are numbered as the other's, and on a trained Bezier curve.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from losscope.landscape import Objective, align, bezier_path, linear_path
from losscope.viz import plot_path

digits = load_digits()
x, y = torch.tensor(digits.data[:400], dtype=torch.float32) / 16, torch.tensor(digits.target[:400])
criterion = nn.CrossEntropyLoss()


def trained(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    return model


first, second = trained(0), trained(1)
objective = Objective(first, (x, y), criterion=criterion)
aligned = align(objective, None, second)
plot_path(
    {
        "straight": linear_path(objective, None, second),
        "straight, units aligned": linear_path(objective, None, aligned.state),
        "Bezier curve": bezier_path(objective, None, second, epochs=40),
    }
)
