"""Set-up of every test session, done before anything of nopair is imported.

- The environment is clean and offline: no variable of the user's reaches a test, nothing can be downloaded.
- One torch thread, so that results do not depend on the machine and workers do not fight over cores.
- Every function and dataclass of nopair checks its annotations, tensor shapes included, when it is called.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType

_FOREIGN = ("NOPAIR_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "DIFFUSERS_", "TORCH", "WANDB_", "TRACKIO_")
for _name in [name for name in os.environ if name.startswith(_FOREIGN)]:
    del os.environ[_name]
_HOME = tempfile.TemporaryDirectory(prefix="nopair-tests-")
os.environ.update(
    HF_HOME=_HOME.name,
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    OMP_NUM_THREADS="1",
    # Rich and typer then print plain lines of a known width.
    NO_COLOR="1",
    TERM="dumb",
    COLUMNS="120",
)

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("nopair", "beartype.beartype")
torch.set_num_threads(1)
# A slow moment of a busy machine is no failure; the same examples every time, so that a red run can be repeated.
settings.register_profile("nopair", deadline=None, derandomize=True, database=None)
settings.load_profile("nopair")


def pytest_unconfigure() -> None:
    """Remove the session's Hugging Face home."""
    _HOME.cleanup()


@pytest.fixture(scope="session")
def endpoint_server() -> ModuleType:
    """The module `endpoint_server.py`: `--import-mode=importlib` knows no sibling modules."""
    path = Path(__file__).with_name("endpoint_server.py")
    spec = importlib.util.spec_from_file_location("nopair_test_endpoint_server", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _same_seed_for_every_test() -> None:
    """No test depends on which tests ran before it in the same process."""
    torch.manual_seed(0)
