"""
Neighbourhoods
==============

How far the loss rises around the weights: within a radius in the worst direction, and under Gaussian noise. Dashed is
what gradient and curvature predict.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from losscope.landscape import Objective
from losscope.landscape.surface import neighbourhood
from losscope.viz import plot_neighbourhood

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data[:300], dtype=torch.float32) / 16, torch.tensor(digits.target[:300])
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
criterion = nn.CrossEntropyLoss()
for _ in range(100):
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()

plot_neighbourhood(neighbourhood(Objective(model, (x, y), criterion=criterion), [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]))
