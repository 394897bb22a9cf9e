"""The server that fails in every way, as a process of its own: prints its address, ends with its standard input."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def module(name: str, path: Path) -> ModuleType:
    """A module of the tests, which are no package."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[name] = found
    spec.loader.exec_module(found)
    return found


def main() -> None:
    here = Path(__file__).parent
    server, toy = module("endpoint_server", here.parent / "endpoint_server.py"), module("toy", here / "toy.py")
    with server.serve(toy.flaky(toy.Model(server), server)) as running:
        print(running.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
