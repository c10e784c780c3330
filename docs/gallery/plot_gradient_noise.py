"""
Gradient noise
==============

The simple noise scale, from gradients of single samples, beside training's batch size; what it is made of; and how
long the samples' gradients are.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import GradientNoise, watch
from losscope.viz import plot_gradient_noise

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data[:500], dtype=torch.float32) / 16, torch.tensor(digits.target[:500])
loader = DataLoader(TensorDataset(x, y), batch_size=25, shuffle=True)
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
criterion = nn.CrossEntropyLoss()

with watch(
    model, optimizer, data=(x, y), criterion=criterion, every=10, batch_size=25, probes=[GradientNoise()]
) as watched:
    for _ in range(10):
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()

plot_gradient_noise(watched.run)
