"""Fixtures for all tests. Environment first: it must be set before torch is imported."""

import atexit
import os
import shutil
import tempfile

# See prm/engine/process.py; and no test may look for a model on a hub.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A server that a test starts keeps its jobs and feedback outside of the repository.
if "RUNG_RUNS" not in os.environ:
    os.environ["RUNG_RUNS"] = tempfile.mkdtemp(prefix="rung-runs-")
    atexit.register(shutil.rmtree, os.environ["RUNG_RUNS"], ignore_errors=True)

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

# Shapes in signatures are checked here and cost nothing in production.
with install_import_hook(
    [
        "prm.engine.attention",
        "prm.engine.heads",
        "prm.engine.kv",
        "prm.engine.logprobs",
        "prm.engine.model",
    ],
    "beartype.beartype",
):
    import prm.engine.heads  # noqa: F401

from tests.factories import publish_tiny_models


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: one that comes last would keep all other workers waiting."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> Iterator[None]:
    """Tiny models gain nothing from a second thread, and engines run beside the tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def anyio_backend() -> str:
    """The server runs on asyncio, so the tests do."""
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tiny policy and a tiny implicit PRM."""
    return publish_tiny_models(tmp_path_factory.mktemp("models"))
