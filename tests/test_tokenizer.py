"""Whatever a library raises over a tokenizer's folder is one line; what is no fault of the folder goes through."""

from pathlib import Path

import pytest

from nopair.errors import Interrupted, ModelError
from nopair.tokenizer import read_tokenizer


class Raising:
    """A tokenizer's class that cannot read its folder."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def from_pretrained(self, folder: str, local_files_only: bool) -> object:
        raise self.error


@pytest.mark.parametrize("error", [Exception("data did not match\nany variant"), KeyError("added_tokens"), OSError()])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(ModelError, match="cannot load the tokenizer") as caught:
        read_tokenizer(tmp_path, Raising(error))
    assert str(caught.value).startswith(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [Interrupted(143), KeyboardInterrupt()])
def test_a_signal_is_no_fault_of_the_folder(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        read_tokenizer(tmp_path, Raising(error))
