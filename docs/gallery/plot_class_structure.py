"""
Classes in the curvature
========================

What the classes make of the Gauss-Newton matrix of cross-entropy: its outliers are the class means' eigenvalues, and
the means themselves lie apart.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from losscope.landscape import GaussNewton, Objective, class_structure, top_eigenpairs
from losscope.viz import plot_class_structure

torch.manual_seed(0)
digits = load_digits()
chosen = torch.tensor(digits.target) < 5
x, y = (torch.tensor(digits.data, dtype=torch.float32) / 16)[chosen], torch.tensor(digits.target)[chosen]
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 5))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
criterion = nn.CrossEntropyLoss()
for _ in range(60):
    optimizer.zero_grad()
    criterion(model(x), y).backward()
    optimizer.step()

objective = Objective(model, (x, y), criterion=criterion)
plot_class_structure(
    class_structure(objective, seed=0), eigenvalues=top_eigenpairs(GaussNewton(objective), k=12, seed=0)
)
