"""What every test gets: no network (nor its children), one thread, empty caches, real data only if asked."""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# The same examples in every run, and no time limit for each: a loaded machine must not fail a property.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")

pytest_plugins = ["fault_figures"]

DATA = "ADALORA_BENCH_DATA"
CACHE = "ADALORA_BENCH_CACHE"
USER_DATA = os.environ.get(DATA)
USER_CACHE = os.environ.get(CACHE)

GUARD = Path(__file__).parent / "guard"
SESSION = Path(tempfile.mkdtemp(prefix="adalora_bench-tests-"))
atexit.register(shutil.rmtree, SESSION, ignore_errors=True)

# Set here, before any test module imports torch or the hub's libraries: they read these once.
os.environ.update(
    OMP_NUM_THREADS="1",
    OMP_WAIT_POLICY="PASSIVE",
    HF_HOME=str(SESSION / "hub"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)

# submitit configures logging when it is imported, which shuts all handlers down: absl's (of rouge-score) closes the
# stream that it found, and under pytest that is the captured one. Imported here it finds none.
if importlib.util.find_spec("submitit"):
    import submitit  # noqa: F401

_spec = importlib.util.spec_from_file_location("socket_guard", GUARD / "sitecustomize.py")
assert _spec is not None
assert _spec.loader is not None
socket_guard = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(socket_guard)


def _refused(address: str) -> AssertionError:
    return AssertionError(f"a test tried to reach {address}; tests run offline")


class SocketAttempts:
    """The addresses that the running test, or a process that it started, tried to reach."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self.claimed = False

    def read(self) -> list[str]:
        """All attempts so far, in order, as `host:port`."""
        return self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else []


@pytest.fixture(scope="session", autouse=True)
def _guarded_session() -> Iterator[Path]:
    """Refuse sockets from the first fixture to the last, here and in Python processes that tests start."""
    log = SESSION / "sockets"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(GUARD), prepend=os.pathsep)
        patch.setenv(socket_guard.LOG, str(log))
        socket_guard.refuse_sockets(_refused)
        yield log


@pytest.fixture(autouse=True)
def _no_sockets(_guarded_session: Path) -> Iterator[SocketAttempts]:
    """Fail a test that tried to open a socket, even where a library swallowed the refusal."""
    _guarded_session.unlink(missing_ok=True)
    attempts = SocketAttempts(_guarded_session)
    yield attempts
    tried = [] if attempts.claimed else attempts.read()
    assert tried == [], "the network was tried; a test that is about this asks for `socket_attempts`"


@pytest.fixture
def socket_attempts(_no_sockets: SocketAttempts) -> SocketAttempts:
    """For a test about the network itself: what was tried, for the test to judge."""
    _no_sockets.claimed = True
    return _no_sockets


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before any fixture: real data and the user's cache for `data` tests only; one thread for torch."""
    real = item.get_closest_marker("data") is not None
    if real and USER_DATA is None:
        pytest.skip(f"{DATA} is not set")
    for name, value in (
        (DATA, USER_DATA if real else None),
        (CACHE, USER_CACHE if real else str(SESSION / "cache")),
    ):
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
