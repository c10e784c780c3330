"""
Trajectory
==========

Where the weights went: a map in the path's first two principal components, distance and length, and how it turns.
Below, the loss in the plane of these components.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.landscape import Objective, plane
from losscope.probes import Trajectory, watch
from losscope.viz import plot_surface, plot_trajectory

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data[:400], dtype=torch.float32) / 16, torch.tensor(digits.target[:400])
loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
criterion = nn.CrossEntropyLoss()

checkpoints = []
with watch(model, optimizer, data=(x, y), criterion=criterion, every=5, probes=[Trajectory()]) as watched:
    for _ in range(20):
        checkpoints.append({name: value.clone() for name, value in model.state_dict().items()})
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()
checkpoints.append(model.state_dict())

plot_trajectory(watched.run)

# %%
# Planes need the weights themselves: checkpoints of one's own, or ``Trajectory(checkpoints=True)``.

plot_surface(plane(Objective(model, (x, y), criterion=criterion), trajectory=checkpoints, points=21))
