"""Fixtures for command lines, the hypothesis profiles, and how many tests run at a time.

`ci` is the default, quick and the same every time; `nightly` makes 100 times the draws: chosen with
``pytest --hypothesis-profile nightly``.
"""

import signal
from pathlib import Path

import numpy as np
import pytest
from commands import Ended, Run
from hypothesis import HealthCheck, settings
from sweep_cases import SMALL
from trace_cases import softmax

import h2osim
from h2osim import cli
from h2osim.support.machine import cores

# A shell starts what it puts in the background with SIGINT ignored, and children inherit that: the
# commands that tests interrupt would never hear of it.
signal.signal(signal.SIGINT, signal.default_int_handler)

CI_EXAMPLES = 50

settings.register_profile(
    "ci",
    max_examples=CI_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "nightly",
    max_examples=100 * CI_EXAMPLES,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ci")

MOST_WORKERS = 8
"""Beyond, each further process takes longer to compile its own loops than it saves."""


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which a single test does without
def pytest_xdist_auto_num_workers() -> int:
    """What ``-n auto`` means: the cores this process may use (a hyperthread counts as one)."""
    return min(MOST_WORKERS, cores())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line inside this process, through the same function as the real command."""
    monkeypatch.delenv("COLUMNS", raising=False)  # some test runners set it, as a terminal would

    def call(*words: object) -> Ended:
        capsys.readouterr()
        code = cli.run([str(word) for word in words])
        out, err = capsys.readouterr()
        return Ended(code, out, err)

    return call


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small trace on disk: two layers, two heads, 40 tokens."""
    rng = np.random.default_rng(7)
    scores = np.tril(rng.gamma(0.4, size=(2, 2, 40, 40)) + 1e-3)
    scores /= scores.sum(-1, keepdims=True)
    path = tmp_path_factory.mktemp("traces") / "small"
    return h2osim.Trace.from_scores(scores, name="small").save(path)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A good scores trace on disk: layers 2 and 9, four heads in groups of two, 40 tokens."""
    made = h2osim.Trace.from_scores(softmax(), group_size=2, layers=[2, 9], name="good")
    return made.save(tmp_path / "good")


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace that tests of sweeps know as SMALL, on disk."""
    return SMALL.save(tmp_path_factory.mktemp("traces") / "small")
