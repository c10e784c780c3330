"""What every test runs under: one thread, fixed seeds, no display, no bare package names."""

import os
import random
import signal
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase

# Before torch and matplotlib are imported, and inherited by the processes that tests start.
os.environ["MPLBACKEND"] = "Agg"
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import hypothesis
import numpy as np
import pytest
import torch

from thorough import THOROUGH

torch.set_num_threads(1)

# A shell ignores Ctrl-C on behalf of what it runs in the background; tests send it to themselves.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples on every run; HYPOTHESIS_PROFILE=explore looks for new ones.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what `make test` leaves out."""
    unmatched = set(THOROUGH)
    for item in items:
        for pattern in THOROUGH:
            if fnmatchcase(item.nodeid, pattern):
                item.add_marker(pytest.mark.thorough)
                unmatched.discard(pattern)
    if unmatched and len(items) > 8000:  # all of them: else a file or a case may have been asked for
        raise pytest.UsageError(f"tests/support/thorough.py: nothing is called {sorted(unmatched)[0]!r}")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start each test from the same random state, so that its outcome does not depend on the tests before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global state is what other code may draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _no_bare_package_names() -> Iterator[None]:
    """Fail the session if a package was imported by its folder's name, as a second copy of itself."""
    yield
    bare = {"landscape", "probes", "viz"} & set(sys.modules)
    assert not bare, f"imported under a bare name instead of losscope.*: {bare}"
