"""
A plane
=======

Hello.
"""

import torch
from torch import nn

from losscope.landscape import Objective, plane
from losscope.viz import plot_surface

torch.manual_seed(0)
x, y = torch.randn(64, 4), torch.randint(3, (64,))
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
plot_surface(plane(Objective(model, (x, y), criterion=nn.CrossEntropyLoss()), points=9))
