"""What `--device` may be."""

import pytest
import torch

from nopair.device import choose_device, enough_memory
from nopair.errors import ConfigError, MemoryShortError


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """A machine with so many GPUs."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


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


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="size of tensor"), enough_memory("take less"):
        torch.ones(2) + torch.ones(3)
