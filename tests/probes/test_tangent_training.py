"""The case study of the tangent kernel, in short."""

import pytest

from tangent_kernel import EARLY, check, distances, trained


@pytest.mark.parametrize("seed", [1])
def test_the_kernel_moves_early_and_less_in_a_wide_network(seed: int) -> None:
    finals, shares = {}, {}
    for width in (16, 64, 256):
        records = distances(trained(width, seed, epochs=8))
        assert [r.status for r in records] == ["ok"] * 9
        finals[width], shares[width] = records[-1].value, records[EARLY].value / records[-1].value
        late = records[-1].values["velocity"]
        assert late < 0.5 * max(r.values["velocity"] for r in records[1 : EARLY + 1])
        assert records[-1].values["alignment"] > records[0].values["alignment"]
    check(finals, shares)


def test_what_is_not_so_is_noticed() -> None:
    with pytest.raises(AssertionError):
        check({32: 0.1, 128: 0.2}, {32: 0.9, 128: 0.9})
    with pytest.raises(AssertionError):
        check({32: 0.2, 128: 0.1}, {32: 0.9, 128: 0.4})
