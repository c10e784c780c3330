"""
Tangent kernel
==============

How far the tangent kernel moves from its beginning, and how fast. Most of it happens in the first epochs.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import TangentKernel, watch
from losscope.viz import plot_tangent_kernel

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data[:500], dtype=torch.float32) / 16, torch.tensor(digits.target[:500])
x = x - x.mean(0)
loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
criterion = nn.CrossEntropyLoss()

with watch(model, optimizer, data=(x, y), criterion=criterion, every=5, probes=[TangentKernel(samples=64)]) as watched:
    for _ in range(16):
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()

plot_tangent_kernel(watched.run)
