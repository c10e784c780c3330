"""
Lines
=====

The loss along one direction, with the parabola that the Hessian predicts as far as it holds. The legend has the
length of a unit: a random direction that is scaled by filters is ten times as long as the eigenvector here, and rises
as much.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from losscope.landscape import Objective, line
from losscope.viz import plot_line

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data[:400], dtype=torch.float32) / 16, torch.tensor(digits.target[:400])
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
criterion = nn.CrossEntropyLoss()
for _ in range(100):
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()

objective = Objective(model, (x, y), criterion=criterion)
plot_line({name: line(objective, name, points=31) for name in ("eigenvector", "gradient", "random")})
