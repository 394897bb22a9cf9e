"""Which benchmark a user names."""

from pathlib import Path
from typing import Final

from nopair.evaluation.benchmarks import dreambooth, imgedit, own
from nopair.evaluation.benchmarks.base import Benchmark
from nopair.evaluation.specs import parse_spec

KINDS: Final = ("gedit", "imgedit", "dreambooth", "jsonl", "folder")


def load_benchmark(text: str, work: Path) -> Benchmark:
    """`gedit:FOLDER`, `imgedit:FOLDER[,images=DIR][,list=FILE]`, `dreambooth:FOLDER`, `jsonl:FILE` or `folder:FOLDER`.

    Images that are no files yet are written below `work`.

    Raises:
        ConfigError: another kind, or an unknown option.
        DataError: the files are missing, of another form, or hold no usable item.
        OutputError: `work` cannot be written.
    """
    spec = parse_spec(text, KINDS)
    place = Path(spec.place)
    spec.only(*(("images", "list") if spec.kind == "imgedit" else ()))
    if spec.kind == "gedit":
        from nopair.evaluation.benchmarks import gedit  # imports `datasets`, which takes a while

        return gedit.read(place, work)
    if spec.kind == "imgedit":
        images = spec.options.get("images")
        return imgedit.read(place, None if images is None else Path(images), spec.options.get("list", imgedit.FILE))
    if spec.kind == "dreambooth":
        return dreambooth.read(place)
    return own.read_lines(place) if spec.kind == "jsonl" else own.read_folder(place)
