"""
A plane
=======

The loss in two random directions, scaled by filters. Dashed are the contours of the quadratic model from Hessian-
vector products, at the same levels; the circle is the radius up to which it holds to 10 %.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from losscope.landscape import Objective, plane
from losscope.viz import interactive_surface, plot_surface

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

picture = plane(Objective(model, (x, y), criterion=criterion), points=31, metrics=["accuracy"], seed=1)
plot_surface(picture)

# %%
# A metric that was measured in the same pass.

plot_surface(picture, value="accuracy")

# %%
# To turn and hover over.

interactive_surface(picture)
