"""What `--device` may be."""

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from transformers import LlavaOnevisionForConditionalGeneration

from nopair.backbones.load import load_backbone
from nopair.device import choose_device, enough_memory
from nopair.errors import ConfigError, MemoryShortError
from nopair.judges.load import load_judge
from nopair.weights import resolve

CURRENT: list[torch.device] = []
"""What became torch's current GPU."""


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setattr(torch.cuda, "set_device", CURRENT.append)
    CURRENT.clear()


@pytest.mark.parametrize(
    ("cards", "name", "card", "device"),
    [
        (0, "auto", 0, "cpu"),
        (0, "cpu", 0, "cpu"),
        (0, "auto", 3, "cpu"),
        (2, "cpu", 1, "cpu"),
        (2, "auto", 0, "cuda:0"),
        (2, "auto", 1, "cuda:1"),
        (2, "cuda", 1, "cuda:1"),
        (2, "cuda:0", 1, "cuda:0"),
    ],
    indirect=["cards"],
)
def test_what_a_name_means(cards: None, name: str, card: int, device: str) -> None:
    assert choose_device(name, card) == torch.device(device)
    assert [torch.device(device)] * (device != "cpu") == CURRENT  # what loads quantised weights knows no other


@pytest.mark.parametrize(
    ("cards", "name", "card", "message"),
    [
        (0, "cuda", 0, "there is no GPU 0, none here that this torch can use; choose another, or use --device cpu"),
        (2, "cuda:2", 0, "device cuda:2: there is no GPU 2, only 2 here, counted from 0"),
        (2, "auto", 2, "there is no GPU 2, only 2 here"),
        (2, "gpu", 0, "device 'gpu' is unknown; choose auto, cpu, cuda or cuda:<number>"),
        (2, "cuda:", 0, "unknown"),
        (2, "cuda:-1", 0, "unknown"),
        (2, "cpu:0", 0, "unknown"),
        (2, "", 0, "unknown"),
        (2, "cuda:0\n", 0, "unknown"),
    ],
    indirect=["cards"],
)
def test_what_is_refused(cards: None, name: str, card: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose_device(name, card)


def test_a_device_without_memory_is_one_line() -> None:
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")
    with (
        pytest.raises(MemoryShortError, match=r"no memory left \(it was asked for 2.50 GiB more\); take less"),
        enough_memory("take less"),
    ):
        raise gpu
    asked = r"no memory left \(it was asked for 4611686018427387904 bytes more\)"
    with pytest.raises(MemoryShortError, match=asked), enough_memory("take less"):
        torch.empty(2**60, dtype=torch.float32)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError(), "the host has no memory left; take less"),
        (
            MemoryError("Unable to allocate 40.0 GiB for an array with shape (1,)"),
            "the host has no memory left (it was asked for 40.0 GiB more); take less",
        ),
        (
            torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors"),
            "the device has no memory left; take less",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "the device has no memory left; take less",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the device has no memory left; take less"),
    ],
)
def test_no_memory_is_one_line_whoever_finds_it_out(error: Exception, line: str) -> None:
    with pytest.raises(MemoryShortError) as told, enough_memory("take less"):
        raise error
    assert str(told.value) == line


def test_another_error_of_a_gpu_stays_what_it_is() -> None:
    with pytest.raises(torch.AcceleratorError), enough_memory("take less"):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_a_model_that_does_not_fit_is_not_called_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither on a GPU, where quantised weights go while they are read, nor on a CPU."""
    for error in (
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate"),
        torch.AcceleratorError("CUDA error: out of memory"),
        MemoryError(),
    ):

        def fails(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        for kind in (ZImageTransformer2DModel, LlavaOnevisionForConditionalGeneration):
            monkeypatch.setattr(kind, "from_pretrained", fails)
        for opened in (load_backbone, load_judge):
            with pytest.raises(MemoryShortError, match="no memory left; take less"), enough_memory("take less"):
                opened(resolve("tiny:base" if opened is load_backbone else "tiny:judge"))


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), enough_memory("take less"):
        torch.ones(2) + torch.ones(3)
