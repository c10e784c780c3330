"""
Layers
======

The trace of every layer's own block of the Hessian over training, by products whose number does not grow with depth.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import LayerTraces, watch
from losscope.viz import interactive_layers, plot_layers

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data[:400], dtype=torch.float32) / 16, torch.tensor(digits.target[:400])
loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
hidden = [layer for _ in range(3) for layer in (nn.Linear(24, 24), nn.ReLU())]
model = nn.Sequential(nn.Linear(64, 24), nn.ReLU(), *hidden, nn.Linear(24, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
criterion = nn.CrossEntropyLoss()

with watch(model, optimizer, data=(x, y), criterion=criterion, every=10, probes=[LayerTraces()]) as watched:
    for _ in range(20):
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()

plot_layers(watched.run)

# %%
# The same to hover over.

interactive_layers(watched.run)
