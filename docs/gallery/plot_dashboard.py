"""
All of a run
============

One figure with everything that a run has recorded, for a first look.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import GradientNoise, NeuralCollapse, Spectrum, Stability, TangentKernel, Trajectory, watch
from losscope.viz import plot_dashboard

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data[:300], dtype=torch.float32) / 16, torch.tensor(digits.target[:300])
loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
criterion = nn.CrossEntropyLoss()

probes = [Stability(), Spectrum(), GradientNoise(), NeuralCollapse(), TangentKernel(samples=64), Trajectory()]
with watch(model, optimizer, data=(x, y), criterion=criterion, every=10, batch_size=50, probes=probes) as watched:
    for _ in range(12):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            watched.log(loss=loss)

plot_dashboard(watched.run)
