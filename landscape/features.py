"""The features that a model makes of its data: the output of a named layer, or the input of its last linear classifier.

Read by forward hooks that are there for one evaluation only. Convolutional features (N, C, H, W) and those of tokens
(N, T, d) become rows by a pooling that is said:

- ``"mean"``: over all positions, (N, C) or (N, d);
- ``"flatten"``: all positions side by side;
- ``"each"``: every position is a sample, and has a label of its own;
- a function of the layer's output that returns (n, d).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batches import tensors_of
from .errors import DataError, SettingError
from .objective import Objective
from .wrappers import wrapper_prefix

__all__ = ["PENULTIMATE", "POOLINGS", "Classifier", "FeatureReader", "find_classifier", "pooled"]

PENULTIMATE = "penultimate"
"""Name of the classifier's input among layers."""
WHOLE = "model"
"""Name of a model that has no layers, as linear regression is."""
POOLINGS = ("mean", "flatten", "each")
Pooling = str | Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Classifier:
    """The linear map that makes the model's outputs.

    Attributes:
        name: of the module.
        module: the module.
    """

    name: str
    module: nn.Linear

    @property
    def weight(self) -> Tensor:
        """(C, d)."""
        return self.module.weight.detach()

    @property
    def bias(self) -> Tensor | None:
        """(C,), or None."""
        return None if self.module.bias is None else self.module.bias.detach()


class FeatureReader:
    """Features of an objective's batches at some layers.

    Args:
        objective: with a ``criterion``, since a ``loss_fn`` hides the outputs; call inside its isolation.
        layers: names of modules, whose outputs are wanted, or ``"penultimate"``.
        pooling: one of `POOLINGS`, or a function.
        classifier: name of the linear classifier; None finds it where it is needed.

    Raises:
        SettingError: if there is no such layer, pooling or classifier.
        LossError: if the objective has a ``loss_fn``.

    Attributes:
        classifier: the classifier, None where its input is not among the layers.
    """

    def __init__(
        self, objective: Objective, layers: Sequence[str], pooling: Pooling = "mean", classifier: str | None = None
    ) -> None:
        if not (callable(pooling) or pooling in POOLINGS):
            raise SettingError(f"pooling must be {', '.join(map(repr, POOLINGS))} or a function, got {pooling!r}")
        self.objective, self.pooling = objective, pooling
        modules = named_modules(objective.model)
        self.classifier: Classifier | None = None
        self._sources: dict[str, nn.Module] = {}
        for layer in layers:
            if layer == PENULTIMATE and layer not in modules:
                self.classifier = find_classifier(objective) if classifier is None else _named(modules, classifier)
                self._sources[layer] = self.classifier.module
            elif layer in modules:
                self._sources[layer] = modules[layer]
            else:
                raise SettingError(f"the model has no layer {layer!r}; it has {_some(modules)}, and {PENULTIMATE!r}")

    def __iter__(self) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        """Of each batch the features (n, d) by layer, and the labels."""
        for index in range(len(self.objective.batches)):
            yield self.read(index)

    def read(self, index: int) -> tuple[dict[str, Tensor], Tensor]:
        """Features and labels of one batch.

        Raises:
            DataError: if a layer is not called once in a pass, or gives no tensor, or there are no labels.
        """
        seen: dict[str, list[Tensor]] = {name: [] for name in self._sources}
        with self.objective.evaluation(index) as batch:
            handles = []
            for name, module in self._sources.items():
                of_input = self.classifier is not None and name == PENULTIMATE
                handles.append(module.register_forward_hook(_keep(seen[name], of_input)))
            try:
                self.objective.loss.outputs(self.objective.model, batch)
                labels = self.objective.loss.targets_of(batch)
            finally:
                for handle in handles:
                    handle.remove()
        if not isinstance(labels, Tensor):
            raise DataError(
                f"labels must be a tensor of class indices, got {type(labels).__name__}; pass targets=batch -> labels"
            )
        return {name: pooled(_once(name, tensors), self.pooling) for name, tensors in seen.items()}, labels.detach()


def find_classifier(objective: Objective) -> Classifier:
    """The last linear layer whose output is the model's output, seen in an evaluation of the first batch.

    Raises:
        SettingError: if there is none.
        LossError: if the objective has a ``loss_fn``.
    """
    modules = named_modules(objective.model)
    linear = {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
    called: list[tuple[str, Tensor, int]] = []  # tensors that are held keep their addresses
    with objective.evaluation(0) as batch:
        handles = [m.register_forward_hook(_remember(called, name)) for name, m in linear.items()]
        try:
            outputs = tensors_of(objective.loss.outputs(objective.model, batch))
        finally:
            for handle in handles:
                handle.remove()
    for name, made, version in reversed(called):
        same = any(made.data_ptr() == out.data_ptr() and made.numel() == out.numel() for out in outputs)
        if same and made._version == version:  # and not divided by a temperature in place
            return Classifier(name, linear[name])
    raise SettingError(
        "no nn.Linear makes the model's outputs, so there is no linear classifier to compare features with: name the "
        f"one that does with classifier=, or a layer to measure with layer=, one of {_some(modules)}"
    )


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by name, without what torch.compile and data-parallel wrappers put before it; a lone layer as `WHOLE`."""
    prefix = wrapper_prefix([name for name, _ in (*model.named_parameters(), *model.named_buffers())])
    named = ((name.removeprefix(prefix), module) for name, module in model.named_modules(remove_duplicate=False))
    found = {name: module for name, module in named if name}
    return found or {WHOLE: model}


def pooled(features: Tensor, pooling: Pooling = "mean") -> Tensor:
    """A layer's output as rows (n, d).

    Args:
        features: (N, d), (N, T, d) of tokens, or (N, C, ...) of positions.
        pooling: what to do with tokens and positions.

    Raises:
        DataError: if it has other dimensions, or a pooling function makes other rows.

    Example:
        >>> import torch
        >>> from losscope.landscape.features import pooled
        >>> [tuple(pooled(torch.ones(5, 3, 4, 4), how).shape) for how in ("mean", "flatten", "each")]
        [(5, 3), (5, 48), (80, 3)]
    """
    if callable(pooling):
        made = pooling(features)
        if not isinstance(made, Tensor) or made.ndim != 2:
            shape = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise DataError(f"a pooling function must return rows (n, d), got {shape} of {tuple(features.shape)}")
        return made
    if features.ndim < 2:
        raise DataError(f"features must be (N, d), (N, T, d) or (N, C, ...), got shape {tuple(features.shape)}")
    if features.ndim == 2:
        return features
    if pooling == "flatten":
        return features.flatten(1)
    if features.ndim > 3:
        features = features.flatten(2).transpose(1, 2)  # channels last, positions as tokens
    return features.mean(dim=1) if pooling == "mean" else features.flatten(0, 1)


def _named(modules: dict[str, nn.Module], name: str) -> Classifier:
    module = modules.get(name)
    if not isinstance(module, nn.Linear):
        linear = {name: m for name, m in modules.items() if isinstance(m, nn.Linear)}
        what = "no module" if module is None else f"a {type(module).__name__}"
        raise SettingError(f"classifier={name!r} is {what}; the linear layers are {_some(linear)}")
    return Classifier(name, module)


def _keep(seen: list[Tensor], of_input: bool) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        found = tensors_of(inputs if of_input else output)
        # A copy: what comes next may write on it, as ReLU(inplace=True) does.
        seen.append(found[0].detach().clone() if found else torch.empty(0))

    return hook


def _remember(called: list[tuple[str, Tensor, int]], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        called.append((name, output, output._version))

    return hook


def _once(name: str, tensors: list[Tensor]) -> Tensor:
    if len(tensors) != 1:
        why = "it is used again at another place" if tensors else "the model does not run it, or not as a module"
        raise DataError(f"layer {name!r} is called {len(tensors)} times in a pass: {why}; name one called once")
    return tensors[0]


def _some(modules: Mapping[str, nn.Module], most: int = 12) -> str:
    names = list(modules)
    shown = names if len(names) <= most else ["...", *names[-most:]]
    return ", ".join(shown) or "none"
