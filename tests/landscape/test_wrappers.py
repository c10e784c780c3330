"""Names without what wrappers put before them, and only that."""

import pytest
import torch
from torch import nn

from losscope.landscape.features import named_modules
from losscope.landscape.wrappers import wrapper_prefix


class Named(nn.Module):
    """With a child of the name that wrappers give theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.head = nn.Linear(3, 3), nn.Linear(3, 2)


@pytest.mark.parametrize(
    ("names", "prefix"),
    [
        ([], ""),
        (["weight"], ""),
        (["module.0.weight", "module.0.bias"], "module."),
        (["_orig_mod.module.weight"], "_orig_mod.module."),
        (["module.weight", "head.weight"], ""),
        (["modules.weight"], ""),
    ],
)
def test_what_stands_before_all_names(names: list[str], prefix: str) -> None:
    assert wrapper_prefix(names) == prefix


def test_modules_of_wrapped_models_have_their_own_names() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    for wrapped in (net, nn.DataParallel(net), torch.compile(nn.DataParallel(net), backend="eager")):
        found = named_modules(wrapped)
        assert found["0"] is net[0] and found["1"] is net[1]


def test_a_child_that_is_called_module_keeps_its_name() -> None:
    model = Named()
    assert named_modules(model) == {"module": model.module, "head": model.head}
    assert set(named_modules(nn.DataParallel(nn.Sequential(model)))) >= {"0", "0.module", "0.head"}
