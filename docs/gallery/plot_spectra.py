"""
Spectra
=======

The spectral density of the Hessian at one step, over training, and the eigenvalues that stand apart from the bulk.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losscope.probes import Spectrum, watch
from losscope.viz import (
    interactive_density,
    interactive_spectrum,
    plot_outliers,
    plot_spectrum,
    plot_spectrum_over_time,
)

torch.manual_seed(0)
digits = load_digits()
x, y = torch.tensor(digits.data[:400], dtype=torch.float32) / 16, torch.tensor(digits.target[:400])
loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
model = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
criterion = nn.CrossEntropyLoss()

with watch(model, optimizer, data=(x, y), criterion=criterion, every=8, probes=[Spectrum()]) as watched:
    for _ in range(12):
        for inputs, targets in loader:
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()

plot_spectrum(watched.run, step=40)

# %%
# A column for each measurement, dark where eigenvalues are dense.

plot_spectrum_over_time(watched.run)

# %%
# The largest eigenvalues, the bulk's edge with its interval, and how many are outliers.

plot_outliers(watched.run)

# %%
# The same to hover over and zoom into.

interactive_spectrum(watched.run)

# %%
# And one step after the other, by a slider.

interactive_density(watched.run)
