"""Neural collapse of a model on its data: at the input of its last linear classifier, or at any of its layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .collapse import BALANCES, Between, Collapse, checked_classifier, collapse_of_moments
from .errors import SettingError
from .feature_moments import Classes, FeatureMoments, SecondPass, checked_features, class_indices
from .features import PENULTIMATE, FeatureReader, Pooling
from .isolation import MODES
from .objective import Objective

__all__ = ["neural_collapse_by_layer", "neural_collapse_of"]


def neural_collapse_of(
    objective: Objective,
    layer: str = PENULTIMATE,
    *,
    pooling: Pooling = "mean",
    classifier: str | None = None,
    classes: int | Sequence[int] | None = None,
    balance: str = "classes",
    ridge: float | None = None,
    mode: str = "eval",
) -> Collapse:
    """How collapsed the features of a model are at one layer; see `neural_collapse`.

    Every batch is evaluated twice, the second time about the class means, and the first once more to find the
    classifier; nothing of it is left in the model, and no more than one batch of features is held.

    Args:
        objective: model and data, with a ``criterion`` on class indices or one-hot targets.
        layer: the name of a module, whose output is measured; ``"penultimate"`` is the input of the last linear
            classifier, which is measured with it.
        pooling: how tokens (N, T, d) and positions (N, C, ...) become rows: ``"mean"`` of them, ``"flatten"``,
            ``"each"`` a sample with its own label, or a function; see `features`.
        classifier: its name, where the model's output is not that of an ``nn.Linear`` itself.
        classes: as in `neural_collapse`.
        balance: the same.
        ridge: the same.
        mode: how the model is evaluated, whatever the objective's mode: normalisation by running statistics, no
            dropout, by default.

    Raises:
        SettingError: if an argument means nothing, or there is no linear classifier.
        DataError: as `neural_collapse`; or if a layer is not called exactly once in a pass.
        LossError: if the objective has a ``loss_fn``, which hides the outputs.
        NonFiniteError: if features or classifier are NaN or infinite.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, neural_collapse_of
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> data = (torch.randn(50, 4), torch.arange(50) % 2)
        >>> objective = Objective(model, data, criterion=torch.nn.CrossEntropyLoss())
        >>> neural_collapse_of(objective).means.shape, neural_collapse_of(objective, "0").means.shape
        (torch.Size([2, 8]), torch.Size([2, 8]))
    """
    found = neural_collapse_by_layer(
        objective, [layer], pooling=pooling, classifier=classifier, classes=classes, balance=balance, ridge=ridge,
        mode=mode,
    )  # fmt: skip
    return found[layer]


def neural_collapse_by_layer(
    objective: Objective,
    layers: Sequence[str],
    *,
    pooling: Pooling = "mean",
    classifier: str | None = None,
    classes: int | Sequence[int] | None = None,
    balance: str = "classes",
    ridge: float | None = None,
    mode: str = "eval",
) -> dict[str, Collapse]:
    """How collapsed the features are at several layers, in the same two passes.

    Args:
        objective: see `neural_collapse_of`.
        layers: names of modules, and ``"penultimate"``. Only what is penultimate has a classifier.
        pooling: see `neural_collapse_of`.
        classifier: the same.
        classes: the same.
        balance: the same.
        ridge: the same; of the penultimate features.
        mode: the same.

    Returns:
        By layer, in their order.

    Raises:
        SettingError: see `neural_collapse_of`.
        DataError: the same.
        LossError: the same.
        NonFiniteError: the same.

    Example:
        >>> import torch
        >>> from losscope.landscape import Objective, neural_collapse_by_layer
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> data = (torch.randn(50, 4), torch.arange(50) % 2)
        >>> objective = Objective(model, data, criterion=torch.nn.CrossEntropyLoss())
        >>> list(neural_collapse_by_layer(objective, ["0", "penultimate"]))
        ['0', 'penultimate']
    """
    if isinstance(layers, str) or not layers:
        raise SettingError(f"layers must be a list of names, got {layers!r}")
    if ridge is not None and PENULTIMATE not in layers:
        raise SettingError(f"ridge= takes the loss of the classifier apart, which is that of layer {PENULTIMATE!r}")
    if balance not in BALANCES:
        raise SettingError(f"balance must be 'classes' or 'samples', got {balance!r}")
    evaluated = _in_mode(objective, mode)
    with evaluated.isolated():
        reader = FeatureReader(evaluated, layers, pooling, classifier)
        rows = None if reader.classifier is None else len(reader.classifier.weight)
        if reader.classifier is not None and rows == 1:
            raise SettingError(
                f"the classifier {reader.classifier.name!r} has one output, not one for each class; name the layer "
                "before it instead, which is measured by itself: layer=..."
            )
        known = Classes(_counted(evaluated, rows) if classes is None else classes)
        W = b = None
        if reader.classifier is not None:
            W, b = checked_classifier(known, reader.classifier.weight, reader.classifier.bias)
        moments: dict[str, FeatureMoments] = {}
        for features, labels in reader:
            for name, rows_of in features.items():
                if name not in moments:
                    checked_features(rows_of)
                    scatter = ridge is not None and name == PENULTIMATE
                    moments[name] = FeatureMoments(known, rows_of.shape[1], rows_of.device, scatter=scatter)
                moments[name].update(rows_of, labels)
        own = {name: (W, b) if name == PENULTIMATE else (None, None) for name in moments}
        between: dict[str, Between] = {}
        second: dict[str, SecondPass] = {}
        for name, of in moments.items():
            of.check()
            between[name] = Between.of(of, balance)
            second[name] = SecondPass(of, *own[name], between[name].directions)
        for features, labels in reader:
            for name, rows_of in features.items():
                second[name].update(rows_of, labels)
    return {
        name: collapse_of_moments(
            moments[name], between[name], second[name], *own[name], ridge=ridge if name == PENULTIMATE else None
        )
        for name in layers
    }


def _in_mode(objective: Objective, mode: str) -> Objective:
    """The same objective on the same batches, evaluated in this mode.

    Raises:
        SettingError: if there is no such mode.
    """
    if mode not in MODES:
        raise SettingError(f"mode must be one of {', '.join(map(repr, MODES))}; got {mode!r}")
    if mode == objective.mode:
        return objective
    assert objective.batches  # read once, for both
    fresh = objective.computed_in(objective.precision)  # a copy that opens an isolation of its own
    fresh.mode = mode
    return fresh


def _counted(objective: Objective, rows: int | None) -> int:
    """Classes: as many as the classifier has rows, else as the labels show."""
    if rows is not None:
        return rows
    labels = [objective.loss.targets_of(batch.content) for batch in objective.batches]
    return max((int(class_indices(y).max()) + 1 for y in labels if isinstance(y, torch.Tensor) and len(y)), default=0)
