"""
Neural collapse
===============

With BatchNorm and weight decay the features of a classifier tend to a simplex: variation within classes vanishes,
class means spread out at equal angles, the classifier aligns with them. Features are those in eval mode.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.landscape import Objective, neural_collapse_by_layer
from losscope.probes import NeuralCollapse, watch
from losscope.viz import plot_collapse

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data[:600], dtype=torch.float32) / 16, torch.tensor(digits.target[:600])
loader = DataLoader(TensorDataset(x, y), batch_size=60, shuffle=True)
model = nn.Sequential(
    nn.Linear(64, 96),
    nn.BatchNorm1d(96),
    nn.ReLU(),
    nn.Linear(96, 96),
    nn.BatchNorm1d(96),
    nn.ReLU(),
    nn.Linear(96, 10),
)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-3)
criterion = nn.CrossEntropyLoss()

with watch(
    model, optimizer, data=(x, y), criterion=criterion, every=20, probes=[NeuralCollapse(["penultimate", "2"])]
) as watched:
    for _ in range(40):
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()

plot_collapse(watched.run)

# %%
# From layer to layer, at the end of training.

objective = Objective(model, (x, y), criterion=criterion)
plot_collapse(neural_collapse_by_layer(objective, ["0", "2", "3", "penultimate"]))
