"""Neural collapse: literal transcriptions of every formula, examples by hand, the unconstrained model."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from collapse.free_features import unconstrained
from collapse_cases import problem
from losscope.landscape import neural_collapse, neural_collapse_of_batches
from losscope.landscape.collapse_geometry import distances
from losscope.landscape.feature_moments import Classes, FeatureMoments

F64 = torch.float64


# --------------------------------------------------------------------------- transcriptions


def pairs(C: int) -> list[tuple[int, int]]:
    return [(c, k) for c in range(C) for k in range(C) if c != k]


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def variance(numbers: list[float], correction: int = 0) -> float:
    return sum((x - mean(numbers)) ** 2 for x in numbers) / (len(numbers) - correction)


def cosine(u: Tensor, v: Tensor) -> float:
    return float(u @ v / (u.norm() * v.norm()))


def one_at_a_time(H: Tensor, y: Tensor, W: Tensor, b: Tensor, balance: str) -> dict[str, float]:
    """Every formula as it is written, one sample and one class at a time."""
    n, d = H.shape
    C = len(W)
    of = [[H[i] for i in range(n) if y[i] == c] for c in range(C)]
    mu = [sum(rows) / len(rows) for rows in of]
    weights = [len(rows) / n if balance == "samples" else 1 / C for rows in of]
    centre = sum(w * m for w, m in zip(weights, mu, strict=True))
    M = [m - centre for m in mu]
    within, between = torch.zeros(d, d, dtype=F64), torch.zeros(d, d, dtype=F64)
    for i in range(n):
        away = H[i] - mu[int(y[i])]
        within += torch.outer(away, away) / n
    for c in range(C):
        between += weights[c] * torch.outer(M[c], M[c])
    values, vectors = torch.linalg.eigh(between)
    inverse = torch.zeros(d, d, dtype=F64)
    for k in range(d - min(C - 1, d), d):
        inverse += torch.outer(vectors[:, k], vectors[:, k]) / values[k]
    v = [mean([float((h - mu[c]).norm() ** 2) for h in of[c]]) for c in range(C)]
    ideal = (torch.eye(C, dtype=F64) - 1 / C) / math.sqrt(C - 1)
    Mm = torch.stack(M)
    logs = [-math.log(float((M[c] / M[c].norm() - M[k] / M[k].norm()).norm())) for c, k in pairs(C)]
    cosines, of_rows = [cosine(M[c], M[k]) for c, k in pairs(C)], [cosine(W[c], W[k]) for c, k in pairs(C)]
    lengths, row_lengths = [float(m.norm()) for m in M], [float(w.norm()) for w in W]
    nearest = [min(range(C), key=lambda c: float((H[i] - mu[c]).norm())) for i in range(n)]
    decided = [max(range(C), key=lambda c: float(W[c] @ H[i] + b[c])) for i in range(n)]
    duality = [cosine(W[c], M[c]) for c in range(C)]
    return {
        "nc1": float((within @ inverse).trace()) / C,
        "nc1_quotient": float(within.trace() / between.trace()),
        "cdnv": mean([(v[c] + v[k]) / (2 * float((mu[c] - mu[k]).norm()) ** 2) for c, k in pairs(C)]),
        "equinorm": math.sqrt(variance(lengths, 1)) / mean(lengths),
        "equinorm_classifier": math.sqrt(variance(row_lengths, 1)) / mean(row_lengths),
        "equiangularity": mean([abs(x + 1 / (C - 1)) for x in cosines]),
        "equiangularity_classifier": mean([abs(x + 1 / (C - 1)) for x in of_rows]),
        "cosine_spread": math.sqrt(variance(cosines)),
        "cosine_spread_classifier": math.sqrt(variance(of_rows)),
        "etf_error": float((Mm @ Mm.T / (Mm @ Mm.T).norm() - ideal).norm()),
        "gnc2": mean(logs),
        "gnc2_variance": variance(logs),
        "nc3": float((W / W.norm() - Mm / Mm.norm()).norm()) ** 2,
        "nc3_etf": float((W @ Mm.T / (W @ Mm.T).norm() - ideal).norm()),
        "duality_variance": variance(duality),
        "nc4": mean([float(p != q) for p, q in zip(nearest, decided, strict=True)]),
        "nearest_mean_error": mean([float(p != int(q)) for p, q in zip(nearest, y, strict=True)]),
        "bias_collapse": float((W @ centre + b).norm()),
    }


@pytest.mark.parametrize("balance", ["classes", "samples"])
@pytest.mark.parametrize("shape", [(60, 7, 4), (90, 3, 9), (40, 1, 2), (50, 30, 5)], ids=str)
def test_every_number_is_its_formula(shape: tuple[int, int, int], balance: str) -> None:
    for seed in range(3):
        H, y, W, b = problem(seed, *shape)
        found = neural_collapse(H, y, weight=W, bias=b, balance=balance)
        expected = one_at_a_time(H, y, W, b, balance)
        assert found.numbers == pytest.approx(expected, rel=1e-6, abs=1e-9)
        assert found.counts.tolist() == torch.bincount(y, minlength=len(W)).tolist()
        torch.testing.assert_close(found.mean_of_samples, H.mean(dim=0))
        torch.testing.assert_close(found.mean_of_classes, found.means.mean(dim=0))
        M = found.means - (found.mean_of_samples if balance == "samples" else found.mean_of_classes)
        torch.testing.assert_close(found.duality, torch.cosine_similarity(W, M))


def test_the_numbers_do_not_depend_on_how_samples_come() -> None:
    H, y, W, b = problem(0, 500, 12, 6)
    expected = neural_collapse(H, y, weight=W, bias=b).numbers
    by_class = y.argsort()
    for order, size in ((by_class, 1), (by_class.flip(0), 7), (torch.arange(500), 500), (torch.arange(500), 64)):
        batches = list(zip(H[order].split(size), y[order].split(size), strict=True))
        assert neural_collapse_of_batches(batches, classes=6, weight=W, bias=b).numbers == pytest.approx(expected)
        once = neural_collapse_of_batches(iter(batches), classes=6, weight=W, bias=b)  # from the scatter matrix
        of_one_pass = {name: value for name, value in expected.items() if name not in ("nc4", "nearest_mean_error")}
        assert {name: once.numbers[name] for name in of_one_pass} == pytest.approx(of_one_pass)


def test_a_far_offset_and_a_far_first_sample_cost_no_accuracy() -> None:
    H, y, _, _ = problem(1, 400, 5, 3)
    expected = neural_collapse(H, y)
    assert neural_collapse(H + 1e6, y).nc1 == pytest.approx(expected.nc1, rel=1e-8)
    H[0] += 1e7  # the shift of class 0 is this sample, when samples come one by one
    batches = list(zip(H.split(1), y.split(1), strict=True))
    apart = neural_collapse_of_batches(batches, classes=3)
    exact = torch.stack([H[y == c].var(dim=0, correction=0).sum() for c in range(3)])
    torch.testing.assert_close(apart.variances, exact, rtol=1e-12, atol=0)
    assert apart.nc1_quotient == pytest.approx(neural_collapse(H.flip(0), y.flip(0)).nc1_quotient, rel=1e-10)


@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_other_floating_point_types(dtype: torch.dtype, rel: float) -> None:
    H, y, W, _ = problem(2)
    expected = neural_collapse(H, y, weight=W).numbers
    found = neural_collapse(H.to(dtype), y, weight=W.to(dtype)).numbers
    for name in ("nc1", "nc1_quotient", "cdnv", "nc3", "equiangularity"):
        assert found[name] == pytest.approx(expected[name], rel=rel), name


def test_numbers_over_pairs_are_the_same_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    H, y, W, b = problem(3, 200, 6, 9)
    expected = neural_collapse(H, y, weight=W, bias=b).numbers
    monkeypatch.setattr("losscope.landscape.collapse_geometry._BLOCK", 20)
    assert neural_collapse(H, y, weight=W, bias=b).numbers == pytest.approx(expected)


@pytest.mark.parametrize("apart", [1.0, 1e-3, 1e-7, 1e-12])
@pytest.mark.parametrize("close", [2, 40], ids=["a pair", "all"])
def test_distances_of_means_that_nearly_coincide(close: int, apart: float) -> None:
    g = torch.Generator().manual_seed(0)
    rows = torch.randn(40, 5, generator=g, dtype=F64)
    rows[:close] = rows[0] + apart * torch.randn(close, 5, generator=g, dtype=F64)
    expected = torch.stack([torch.stack([(a - b).norm() for b in rows]) for a in rows[3:20]])
    found = distances(rows, slice(3, 20))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=0)


# --------------------------------------------------------------------------- by hand


def test_by_hand_two_classes_on_a_line() -> None:
    """Means -1 and 1, every sample 0.5 away: Sigma_W = 1/4, Sigma_B = 1."""
    H = torch.tensor([[-1.5], [-0.5], [0.5], [1.5]])
    found = neural_collapse(H, torch.tensor([0, 0, 1, 1]), weight=torch.tensor([[-3.0], [1.0]]))
    assert found.nc1 == pytest.approx(1 / 8)  # 1/4 over two classes
    assert found.nc1_quotient == pytest.approx(1 / 4)
    assert found.cdnv == pytest.approx((1 / 4 + 1 / 4) / (2 * 4))
    assert (found.equinorm, found.equiangularity, found.etf_error) == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.equinorm_classifier == pytest.approx(math.sqrt(2) / 2)  # of 3 and 1
    assert found.gnc2 == pytest.approx(-math.log(2))
    assert found.nc3 == pytest.approx(2 - 2 * 4 / math.sqrt(20))  # <W, M> = 4, |W| = sqrt 10, |M| = sqrt 2
    assert (found.nc4, found.nearest_mean_error, found.bias_collapse) == (0, 0, 0)


def test_by_hand_three_imbalanced_classes_on_the_axes() -> None:
    """Two samples of class 0 at 3 e_0 -+ e_3, one of class 1 at 3 e_1, one of class 2 at 3 e_2."""
    H = torch.tensor([[3.0, 0, 0, -1], [3, 0, 0, 1], [0, 3, 0, 0], [0, 0, 3, 0]])
    y, W = torch.tensor([0, 0, 1, 2]), torch.eye(3, 4)
    found = neural_collapse(H, y, weight=W, bias=torch.tensor([-1.0, -1, -1]))
    assert found.nc1 == pytest.approx(0, abs=1e-12)  # it varies along e_3 alone, where the means do not
    assert found.nc1_quotient == pytest.approx((2 / 4) / 6)  # |M_c|^2 = 9 * 2/3
    assert found.cdnv == pytest.approx((4 * 1 / 36) / 6)  # of six ordered pairs, four have class 0 with v = 1
    assert (found.equinorm, found.equiangularity) == pytest.approx((0, 0), abs=1e-12)
    assert found.bias_collapse == pytest.approx(0, abs=1e-12)
    assert found.mean_of_classes.tolist() == pytest.approx([1, 1, 1, 0])
    assert found.mean_of_samples.tolist() == pytest.approx([1.5, 0.75, 0.75, 0])
    assert found.imbalance == 2
    weighted = neural_collapse(H, y, weight=W, balance="samples")
    # M_0 = (1.5, -.75, -.75), |.|^2 = 3.375; M_1 = (-1.5, 2.25, -.75), |.|^2 = 7.875; tr Sigma_B = 1.6875 + 3.9375
    assert weighted.nc1_quotient == pytest.approx(0.5 / 5.625)
    assert weighted.bias_collapse == pytest.approx(math.sqrt(1.5**2 + 2 * 0.75**2))


def test_by_hand_more_classes_than_the_plane_has_room_for() -> None:
    """Four classes at the corners of a square: two pairs at 180 degrees, four at 90."""
    corners = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    H = torch.cat((corners + torch.tensor([0.1, 0]), corners - torch.tensor([0.1, 0])))
    found = neural_collapse(H, torch.arange(4).repeat(2))
    assert found.nc1 == pytest.approx(0.01 / 0.5 / 4)  # Sigma_W = 0.01 e_0 e_0', Sigma_B = I / 2
    assert found.rank == 2
    assert found.nc1_quotient == pytest.approx(0.01)
    assert found.cdnv == pytest.approx((8 * 0.01 / 2 + 4 * 0.01 / 4) / 12)
    assert found.equiangularity == pytest.approx((8 * 1 / 3 + 4 * 2 / 3) / 12)
    assert found.cosine_spread == pytest.approx(math.sqrt((8 / 9 + 4 * 4 / 9) / 12))
    assert found.gnc2 == pytest.approx(-(8 * math.log(math.sqrt(2)) + 4 * math.log(2)) / 12)
    assert found.gnc2_variance == pytest.approx(math.log(2) ** 2 / 4 * 2 / 9)  # a third of the pairs log(2)/2 away
    assert {"equiangularity", "etf_error"} <= set(found.reasons)


# --------------------------------------------------------------------------- models that collapse


def test_the_unconstrained_feature_model_collapses() -> None:
    """Features as free parameters, C = 4, d = 16, 20 of each class (Mixon et al. 2020, Zhu et al. 2021)."""
    for seed in range(3):
        found = unconstrained(seed).numbers
        for name in ("nc1", "nc1_quotient", "cdnv", "nc3", "gnc2_variance", "duality_variance"):
            assert found[name] < 1e-9, name
        for name in ("equinorm", "equiangularity", "cosine_spread", "etf_error", "equinorm_classifier", "nc3_etf"):
            assert found[name] < 1e-6, name
        assert found["nc4"] == 0


# --------------------------------------------------------------------------- classes


def test_a_list_of_classes_measures_them_alone() -> None:
    H, y, W, b = problem(7, 120, 5, 6)
    listed = [4, 1, 2] if int((y == 4).sum()) else [3, 1, 2]
    kept = (y[:, None] == torch.tensor(listed)).any(dim=1)
    of = {label: row for row, label in enumerate(listed)}
    expected = neural_collapse(
        H[kept], torch.tensor([of[int(label)] for label in y[kept]]), weight=W[listed], bias=b[listed]
    )
    found = neural_collapse(H, y, weight=W, bias=b, classes=listed)
    assert found.numbers == pytest.approx(expected.numbers)
    assert found.labels == tuple(listed)
    assert found.left_out == int((~kept).sum())


def test_ignored_samples_and_one_hot_labels() -> None:
    H, y, W, b = problem(8)
    expected = neural_collapse(H, y, weight=W, bias=b).numbers
    assert neural_collapse(H, F.one_hot(y, 4).double(), weight=W, bias=b).numbers == expected
    padded = torch.cat((H, torch.full((3, 7), 1e9, dtype=F64)))
    found = neural_collapse(padded, torch.cat((y, torch.full((3,), -100))), weight=W, bias=b)
    assert found.numbers == pytest.approx(expected)
    assert found.left_out == 3


def test_half_precision_features_with_a_far_offset() -> None:
    """The classes are 1 apart at 200, where bfloat16 numbers are 1 apart: their means are known far better."""
    g = torch.Generator().manual_seed(0)
    y = torch.arange(30_000) % 3
    H = 200 + torch.eye(3, 8)[y] + 2 * torch.randn(30_000, 8, generator=g)
    found, expected = neural_collapse(H.bfloat16(), y), neural_collapse(H, y)
    assert found.rank == 2
    assert found.nc1 == pytest.approx(expected.nc1, rel=0.1)
    assert found.equiangularity == pytest.approx(expected.equiangularity, abs=0.05)


def test_scale_and_rotation_change_nothing() -> None:
    H, y, W, _ = problem(9)
    Q = torch.linalg.qr(torch.randn(7, 7, dtype=F64, generator=torch.Generator().manual_seed(0))).Q
    expected = neural_collapse(H, y, weight=W).numbers
    expected.pop("bias_collapse")  # has the units of an output
    for scale in (1e-8, 1e8):
        found = neural_collapse(scale * H @ Q, y, weight=W @ Q).numbers
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-7)


def test_nc5_is_the_cosine_with_what_comes_from_outside() -> None:
    found = neural_collapse(torch.tensor([[1.0, 0], [3, 0], [0, 1], [0, 5]]), torch.tensor([0, 0, 1, 1]))
    assert found.nc5(torch.tensor([[3.0, 4.0]])) == pytest.approx((0.6 + 0.8) / 2)


# --------------------------------------------------------------------------- many samples


def test_memory_does_not_grow_with_the_samples() -> None:
    """What an accumulator holds is that of one sample."""
    moments = FeatureMoments(Classes(10), 64)

    def held() -> int:
        return sum(t.nbytes for t in vars(moments).values() if isinstance(t, Tensor))

    before = held()
    for seed in range(20):
        moments.update(torch.randn(500, 64, generator=torch.Generator().manual_seed(seed)), torch.arange(500) % 10)
    assert held() == before <= 8 * (64 * 64 + 2 * 10 * 64 + 2 * 10)
    assert moments.samples == 10_000
