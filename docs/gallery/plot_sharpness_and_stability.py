"""
Sharpness and stability
=======================

Full-batch gradient descent on digits. The sharpness rises until it meets its threshold, 2/lr, and hovers there: the
edge of stability. ``plot_sharpness`` draws it with the training curve, ``plot_stability`` every criterion of the
audit over its own threshold, with the phases of the run shaded.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

from losscope.probes import watch
from losscope.viz import interactive_sharpness, interactive_stability, plot_sharpness, plot_stability

torch.manual_seed(0)
digits = load_digits()
x = torch.tensor(digits.data[:500], dtype=torch.float32) / 16
y = nn.functional.one_hot(torch.tensor(digits.target[:500])).float()
model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
criterion = nn.MSELoss()

with watch(model, optimizer, data=(x, y), criterion=criterion, every=10, batch_size=500) as watched:
    for _ in range(600):
        optimizer.zero_grad()
        loss = criterion(model(x), y)
        loss.backward()
        optimizer.step()
        watched.log(loss=loss)

plot_sharpness(watched.run)

# %%
# The criteria of mini-batch noise do not apply to full batches, so that one ratio is left.

plot_stability(watched.run)

# %%
# Both to hover over: under the pointer are value, interval, threshold and verdict of each measurement.

interactive_sharpness(watched.run)

# %%
interactive_stability(watched.run)
