"""Set-up of every test session, done before anything of nopair is imported.

- The environment is clean and offline: no variable of the user's reaches a test, nothing can be downloaded.
- One torch thread, so that results do not depend on the machine and workers do not fight over cores.
- Every function and dataclass of nopair checks its annotations, tensor shapes included, when it is called.
"""

import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
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
def sibling() -> Callable[[str], ModuleType]:
    """The module in a file of the tests, its path relative to their folder: `--import-mode=importlib` knows no sibling
    modules."""

    def load(path: str) -> ModuleType:
        name = "nopair_tests_" + path.replace("/", "_").removesuffix(".py")
        if name not in sys.modules:
            spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / path)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[name])
        return sys.modules[name]

    return load


@pytest.fixture(scope="session")
def endpoint_server(sibling: Callable[[str], ModuleType]) -> ModuleType:
    """A local OpenAI-compatible server with scripted replies."""
    return sibling("endpoint_server.py")


@pytest.fixture(scope="session")
def tiny_bases(sibling: Callable[[str], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models, one of each family: `zimage`, `flux2`, `qwen_image`, `sd3`. To be read only."""
    folder = tmp_path_factory.mktemp("bases")
    zimage = sibling("backbones/conftest.py").tiny_backbone(seed=0)
    zimage.save(folder / "zimage")
    for name in ("flux2", "qwen_image"):
        sibling(f"backbones/{name}/conftest.py")._tiny(zimage.tokenizer).save(folder / name)
    sd3 = sibling("backbones/sd3/conftest.py")
    sd3._publish(sd3._pipeline(t5=True), folder / "sd3")
    return folder


@pytest.fixture(autouse=True)
def _same_seed_for_every_test() -> None:
    """No test depends on which tests ran before it in the same process."""
    torch.manual_seed(0)
