"""How fast photos reach training, next to plain `datasets` with a DataLoader and to WebDataset; what a million cost.

    python benchmarks/loader.py            # about four minutes on one core, 1 GB of disk in a temporary folder

All three decode the same 512x512 JPEG files to the same float tensors in one process, on one thread, in batches of 8;
their turns alternate. nopair shuffles fully (any photo may follow any); WebDataset reads in order of the files, with
a shuffle buffer of 1000. Then a dataset of a million records, photos by path (they are not there): time and memory of
opening, of the first and a late order, in a process of its own.
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from nopair.data.photos import PhotoSource
from nopair.data.records import Photo, Record, measure
from nopair.data.shards import write_dataset
from nopair.data.tables import open_table

BATCH, SIDE = 8, 512


def photos(count: int) -> Iterator[bytes]:
    """Smooth noise: files of about the size of real photos of so many pixels."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), np.uint8))
        picture = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
        noisy = np.clip(picture + rng.integers(-6, 7, picture.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noisy).save(buffer, format="JPEG", quality=90)
        yield buffer.getvalue()


def ask(number: int) -> dict[str, str]:
    """What is asked of a photo."""
    words = {"instruction": f"put a hat on cat {number}", "caption": f"cat {number}", "category": "add"}
    return words | {"edited_caption": f"cat {number} with a hat", "subject": "hat"}


def records(count: int) -> Iterator[Record]:
    """Records with their photos inside."""
    for number, content in enumerate(photos(count)):
        facts = measure(content, "it")
        yield Record(
            id=f"{number}", image=Photo(bytes=content), height=facts.height, width=facts.width,
            image_hash=facts.image_hash, image_length=facts.image_length, source="bench", licence="CC0", **ask(number),
        )  # fmt: skip


def by_path(count: int) -> Iterator[Record]:
    """Records of photos that are not there."""
    sizes = ((512, 512), (768, 512), (512, 768), (640, 480))
    kinds = ("add", "remove", "style", "colour")
    for number in range(count):
        height, width = sizes[number % 4]
        yield Record(
            id=f"photos/{number}", image=Photo(path=f"photos/{number:07}.jpg"), height=height, width=width,
            image_hash=f"{number:064x}", image_length=60_000, source="bench", licence="CC0",
            **ask(number) | {"category": kinds[number // 4 % 4]},
        )  # fmt: skip


def to_tensor(picture: Image.Image) -> torch.Tensor:
    """What all sides end with."""
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).contiguous().float().div_(255)


def ours(folder: Path) -> Iterator[torch.Tensor]:
    """nopair's batches."""
    source = PhotoSource.of(open_table(folder), ((SIDE, SIDE),), group=BATCH, seed=0, nothing_share=0.01)
    start = 0
    while True:
        yield source.batch(range(start, start + BATCH)).reference
        start += BATCH


def plain(folder: Path) -> Iterator[torch.Tensor]:
    """Batches of `datasets`, through its own copy of the data."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    loaded = load_dataset("parquet", data_files=str(folder / "data" / "*"), split="train", cache_dir=f"{folder}/cache")
    while True:
        yield from DataLoader(
            loaded, BATCH, shuffle=True, collate_fn=lambda rows: torch.stack([to_tensor(row["image"]) for row in rows])
        )


def tars(folder: Path) -> Iterator[torch.Tensor]:
    """WebDataset's batches."""
    import webdataset as wds

    urls = [str(path) for path in sorted((folder / "tars").iterdir())]
    stream = wds.WebDataset(urls, shardshuffle=len(urls), empty_check=False).shuffle(1000).decode("pil").repeat()
    for samples in stream.batched(BATCH, collation_fn=list):
        yield torch.stack([to_tensor(sample["jpg"]) for sample in samples])


def write_tars(folder: Path, count: int) -> None:
    """The same photos for WebDataset."""
    (folder / "tars").mkdir()
    for shard in range(4):
        with tarfile.open(folder / "tars" / f"{shard}.tar", "w") as tar:
            for number, content in enumerate(photos(count)):
                if number % 4 == shard:
                    for suffix, data in (("jpg", content), ("json", json.dumps(ask(number)).encode())):
                        member = tarfile.TarInfo(f"{number:06}.{suffix}")
                        member.size = len(data)
                        tar.addfile(member, io.BytesIO(data))


def rates(folder: Path, count: int, turns: int) -> None:
    """All sides in turn."""
    write_dataset(folder, records(count))
    write_tars(folder, count)
    size = sum(path.stat().st_size for path in (folder / "data").iterdir()) // count
    streams: dict[str, Iterator[torch.Tensor]] = {}
    for name, make in {"nopair": ours, "datasets": plain, "webdataset": tars}.items():
        started = time.perf_counter()
        streams[name] = make(folder)
        next(streams[name])
        print(f"{name}: first batch after {time.perf_counter() - started:.2f} s")
    found: dict[str, list[float]] = {name: [] for name in streams}
    for _ in range(turns):
        for name, stream in streams.items():
            started = time.process_time()
            for _ in range(count // BATCH // 2):
                next(stream)
            found[name].append(count // 2 / (time.process_time() - started))
    for name, values in found.items():
        ratio = statistics.median(a / b for a, b in zip(found["nopair"], values, strict=True))
        spread = f"{min(values):.0f} to {max(values):.0f}"
        print(f"{name}: {statistics.median(values):.0f} photos/s per core ({spread}); nopair is {ratio:.2f} times it")
    print(f"{count} photos of {size} bytes, {turns} turns, CPU time, one thread")


def large(folder: Path) -> None:
    """In a process of its own: what opening and shuffling cost."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    table = open_table(folder)
    opened = time.perf_counter()
    sizes = ((512, 512), (624, 416), (416, 624), (576, 448))
    shares = {"default": 1.0, "remove": 3.0}
    source = PhotoSource.of(table, sizes, group=64, seed=0, nothing_share=0.01, shares=shares)
    ready = time.perf_counter()
    rows = {source.order.row(index) for index in range(1000)}
    drawn = time.perf_counter()
    late = source.order.row(10**9 + 7)
    resumed = time.perf_counter()
    table.ask(late)
    asked = time.perf_counter()
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(
        f"{len(table)} records: open {opened - started:.2f} s, buckets and order {ready - opened:.2f} s, "
        f"a place {1e6 * (drawn - ready) / 1000:.0f} us, sample 10^9 {1e6 * (resumed - drawn):.0f} us, "
        f"words of one {1e3 * (asked - resumed):.1f} ms; {memory:.0f} MB more at the highest ({len(rows)} rows drawn)"
    )


def main() -> None:
    """The million first, then the rates."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--records", type=int, nargs="*", default=[10_000, 1_000_000])
    parser.add_argument("--large", type=Path)
    arguments = parser.parse_args()
    if arguments.photos and not arguments.large and find_spec("webdataset") is None:
        parser.exit(2, "WebDataset is not installed: pip install 'nopair[bench]', or leave the rates out: --photos 0\n")
    torch.set_num_threads(1)
    os.environ["HF_DATASETS_OFFLINE"] = "1"
    if arguments.large:
        large(arguments.large)
        return
    with tempfile.TemporaryDirectory() as name:
        for count in arguments.records:
            started = time.perf_counter()
            write_dataset(Path(name) / str(count), by_path(count))
            print(f"{count} records written in {time.perf_counter() - started:.0f} s", flush=True)
            subprocess.run([sys.executable, __file__, "--large", str(Path(name) / str(count))], check=True)
        if arguments.photos:
            rates(Path(name) / "photos", arguments.photos, arguments.turns)


if __name__ == "__main__":
    main()
