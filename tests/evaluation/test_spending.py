"""What was paid is noted, however a session ends."""

from pathlib import Path

import pytest

from nopair.endpoints.server import Server, Usage
from nopair.errors import DataError
from nopair.evaluation.spending import Spending, noted, spent

FREE = Server(url="http://x/v1", model="a")
PRICED = Server(url="http://x/v1", model="a", input_price=1.0, output_price=10.0)


def test_sessions_add_up_also_those_that_were_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.usage"
    assert spent(path) is None
    with noted(path, PRICED, Usage):
        pass
    assert spent(path) is None, "nothing was asked"
    for server, usage in (
        (PRICED, Usage(2, 0, 1_000_000, 100_000, 1)),
        (PRICED.model_copy(update={"currency": "EUR"}), Usage(1, 1)),
        (FREE, Usage(3, 0, 30, 3)),
        (None, Usage(1, 0, 5, 5)),
    ):
        with pytest.raises(KeyboardInterrupt), noted(path, server, lambda usage=usage: usage):
            raise KeyboardInterrupt
    found = spent(path)
    assert found == Spending(Usage(7, 1, 1_000_035, 100_008, 1), {"USD": 2.0, "EUR": 0.0}, 4)
    assert found.cost == "at least 2.00 USD + 0.00 EUR"
    assert Spending(Usage(1), {}, 1).cost == "–"
    path.write_text("[]\n")
    with pytest.raises(DataError, match="no session"):
        spent(path)
