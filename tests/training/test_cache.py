"""What was encoded before: found again by content, and by nothing else."""

import dataclasses
import json
import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nopair.backbones.base import Backbone
from nopair.backbones.fake import ToyBackbone
from nopair.config import load_recipe
from nopair.data.photos import PhotoSource
from nopair.data.tables import open_table
from nopair.errors import DataError, OutputError
from nopair.training.cache import LISTS, CachedBackbone, Store, fill, image_key, prompt_key, visited
from nopair.training.parallel import ALONE, Ranks
from nopair.training.run import compose
from nopair.types import EditBatch
from nopair.world.records import WorldSource

SHORT = ["warmup.steps=1", "warmup.batch=2", "npedit.steps=2", "npedit.batch=3"]


def base(folder: Path, weights: bytes = b"1") -> Path:
    for part in ("text_encoder", "tokenizer", "vae", "transformer"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / part / "weights").write_bytes(weights)
    return folder


def filled(tmp_path: Path) -> tuple[CachedBackbone, ToyBackbone, WorldSource]:
    toy, store = ToyBackbone.build(seed=0), Store.of(tmp_path / "cache", base(tmp_path / "base"), "float32")
    source = WorldSource(seed=0, held_out=False, nothing_share=0.5)
    fill(store, toy, load_recipe("demo", SHORT), source, source.batch([90]))
    return CachedBackbone(toy, store), toy, source


def test_entries_are_what_the_backbone_makes(tmp_path: Path) -> None:
    cached, toy, source = filled(tmp_path)
    assert isinstance(cached, Backbone)
    for batch, asked in ((source.batch(range(6)), True), (source.batch([90]), False)):
        for prompts in (*([batch.captions] if asked else []), batch.instructions, batch.edited_captions):
            found, made = cached.encode_text(prompts), toy.encode_text(prompts)
            assert found.lengths == made.lengths
            assert torch.equal(found.features, made.features)
        assert torch.equal(cached.encode_image(batch.reference), toy.encode_image(batch.reference))
    other = cached.with_transformer(ToyBackbone.build(seed=1).transformer)
    assert other.store == cached.store
    assert other.transformer is not cached.transformer


@pytest.mark.parametrize("reader", [None, "npedit.negative_prompt=null", "npedit.preserve=unedited"])
def test_captions_that_nobody_reads_are_not_encoded(tmp_path: Path, reader: str | None) -> None:
    """Of records that warm-up does not visit. A prompt of FLUX.2 takes 8 MB."""
    unread = ["npedit.negative_prompt=bad", "npedit.preserve=everywhere", "npedit.redraw_weight=0.0"]
    recipe = load_recipe("demo", [*SHORT, *unread, *([] if reader is None else [reader])])
    store = Store.of(tmp_path / "cache", base(tmp_path / "base"), "float32")
    source = WorldSource(seed=0, held_out=False, nothing_share=0.0)
    fill(store, ToyBackbone.build(seed=0), recipe, source, source.batch([90]))
    there = [store.has(prompt_key(caption)) for caption in source.batch(range(6)).captions]
    assert there == [True] * 2 + [reader is not None] * 4


@pytest.mark.parametrize("free", [10**5, 10**9])
def test_a_disk_that_may_be_too_small_is_told_once_and_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int
) -> None:
    monkeypatch.setattr("nopair.training.cache.shutil.disk_usage", lambda _: SimpleNamespace(free=free))
    store = Store.of(tmp_path / "cache", base(tmp_path / "base"), "float32")
    source, recipe = WorldSource(seed=0, held_out=False), load_recipe("demo", [*SHORT, "npedit.steps=5"])
    fill(store, ToyBackbone.build(seed=0), recipe, source, source.batch([90]))
    assert len(caplog.messages) == (free == 10**5)
    assert all("set data.cache to a larger disk" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        (("warmup.steps=5", "warmup.batch=4"), 20),
        (("grpo.steps=5", "grpo.batch=4"), 20),
        (("npedit.steps=5", "npedit.batch=4"), 20),
        (("npedit.fake_samples=fresh", "npedit.fake_steps=2"), 18),
    ],
)
def test_every_record_that_a_phase_visits_counts(changes: tuple[str, ...], count: int) -> None:
    assert visited(load_recipe("demo", [*SHORT, *changes])) == count


def test_training_finds_all_it_reads_where_captions_are_left_out(tmp_path: Path) -> None:
    unread = ["npedit.negative_prompt=bad", "npedit.preserve=everywhere", "npedit.redraw_weight=0.0"]
    training = compose(load_recipe("demo", [*SHORT, *unread, "data.cache=" + str(tmp_path / "cache")]))
    for phase in (training.warmup, training.npedit):
        phase.begin()
        phase.step(0)
        phase.samples(0)
        phase.end()


def test_what_the_fake_score_sees_afresh_is_there_too(tmp_path: Path) -> None:
    """Its records follow those of the student's steps (`nopair.training.generated.Fresh`)."""
    fresh = ["data.cache=" + str(tmp_path / "cache"), "npedit.fake_samples=fresh", "npedit.fake_steps=2"]
    training = compose(load_recipe("demo", [*SHORT, *fresh]))
    training.npedit.begin()
    for step in range(2):
        training.npedit.step(step)


@pytest.mark.parametrize(
    "shown",
    [
        ("npedit.context=unedited", "npedit.redraw_weight=0.0"),
        ("npedit.context=none", "npedit.redraw_weight=1.0", "npedit.redraw_context=unedited"),
    ],
)
def test_what_stands_for_an_edited_place_is_there_too(tmp_path: Path, shown: tuple[str, ...]) -> None:
    recipe = load_recipe("demo", [*SHORT, "data.cache=" + str(tmp_path / "cache"), *shown])
    phase = compose(recipe).npedit
    phase.begin()
    phase.step(0)


def test_ranks_share_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, operation: waited.append(len(entries())))

    def entries() -> set[str]:
        return {path.name for path in tmp_path.rglob("*.safetensors")}

    source = WorldSource(seed=0, held_out=False, nothing_share=0.5)
    toy, store = ToyBackbone.build(seed=0), Store.of(tmp_path / "cache", base(tmp_path / "base"), "float32")
    for rank in range(2):
        fill(store, toy, load_recipe("demo", SHORT), source, source.batch([90]), Ranks(rank, 2))
    one, both = waited
    filled(tmp_path / "alone")
    assert 0 < one < both == len(entries())  # nothing is left for a rank alone, and nothing too much
    assert both == len({path.name for path in (tmp_path / "cache").rglob("*.safetensors")})


def test_what_is_not_there_is_named_and_never_made_on_the_way(tmp_path: Path) -> None:
    cached, _, source = filled(tmp_path)
    with pytest.raises(DataError, match="no entry for 'fly to the moon'"):
        cached.encode_text(["fly to the moon"])
    with pytest.raises(DataError, match="a reference image"):
        cached.encode_image(source.batch([6]).reference)


def test_the_store_is_named_by_what_encodes(tmp_path: Path) -> None:
    cache, folder = tmp_path / "cache", base(tmp_path / "base")
    store = Store.of(cache, folder, "float32")
    assert Store.of(cache, base(tmp_path / "copy"), "float32") == store
    assert Store.of(cache, folder, "bfloat16") != store
    (folder / "transformer" / "weights").write_bytes(b"2")  # does not encode
    assert Store.of(cache, folder, "float32") == store
    (folder / "text_encoder" / "weights").write_bytes(b"2")
    assert Store.of(cache, folder, "float32") != store
    store = Store.of(cache, folder, "float32")
    for name in ("model_index.json", "zimage.json"):  # which encoders there are, and how they are spoken to
        (folder / name).write_text("{}")
        assert Store.of(cache, folder, "float32") != store
        store = Store.of(cache, folder, "float32")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError):
        Store.of(tmp_path / "file", folder, "float32")


@given(st.text(), st.text())
def test_other_prompts_have_other_names(one: str, other: str) -> None:
    assert (prompt_key(one) == prompt_key(other)) == (one == other)


def test_other_images_have_other_names() -> None:
    image = torch.rand(3, 4, 6)
    assert image_key(image) == image_key(image.clone())
    assert image_key(image) != image_key(image + 1e-6)
    assert image_key(image) != image_key(image.reshape(3, 6, 4))


def test_records_are_encoded_one_by_one_and_let_go(tmp_path: Path) -> None:
    """All photos of a long run would not fit into memory."""
    world, alive, most = WorldSource(seed=0, held_out=False), weakref.WeakSet[torch.Tensor](), 0

    class Watched:
        def batch(self, indices: Sequence[int]) -> EditBatch:
            nonlocal most
            batch = world.batch(indices)
            alive.add(batch.reference)
            most = max(most, len(alive))
            return batch

    toy, store = ToyBackbone.build(seed=0), Store.of(tmp_path / "cache", base(tmp_path / "base"), "float32")
    fill(store, toy, load_recipe("demo", [*SHORT, "npedit.steps=8"]), Watched(), world.batch([90]))
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) > 24
    assert most <= 2


# Another start -------------------------------------------------------------------------------------------------------


def some_photos(folder: Path) -> Path:
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (16, 16), (60 * number, 0, 200)).save(folder / f"{number}.png")
    words = {"instruction": "add a hat", "edited_caption": "a cat with a hat", "category": "add"}
    rows = [words | {"image": f"{number}.png", "caption": f"cat {number}"} for number in range(4)]
    (folder / "photos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "photos.jsonl"


def started(file: Path, folder: Path, *changes: str, ranks: Ranks = ALONE, **settings: object) -> list[int]:
    """A start of training on photos: the records that were read to fill the store."""
    read: list[int] = []
    chosen = {"sizes": ((16, 16),), "group": 1, "seed": 0, "nothing_share": 0.0} | settings
    photos = PhotoSource.of(open_table(file), **chosen)  # pyright: ignore

    class Watched:
        def batch(self, indices: Sequence[int]) -> EditBatch:
            read.extend(indices)
            return photos.batch(indices)

    few = ("warmup.steps=0", "npedit.steps=4", "npedit.batch=1", "npedit.redraw_weight=0.0")
    recipe = load_recipe("demo", [*few, *changes])
    store = Store.of(folder / "cache", base(folder / "base"), "float32")
    fill(store, ToyBackbone.build(seed=0), recipe, Watched(), photos.batch([0]), ranks, photos.state())
    return read


def test_a_start_reads_no_photo_where_all_is_there(tmp_path: Path) -> None:
    file = some_photos(tmp_path / "photos")
    assert started(file, tmp_path) == [0, 1, 2, 3]
    assert started(file, tmp_path) == []
    assert started(file, tmp_path, "npedit.lr=1e-5") == []


def test_what_is_missing_is_made_by_another_start(tmp_path: Path) -> None:
    file = some_photos(tmp_path / "photos")
    started(file, tmp_path)
    entries = {path: path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    for path, content in entries.items():
        path.unlink()
        assert started(file, tmp_path) == [0, 1, 2, 3]
        assert path.read_bytes() == content
    assert started(file, tmp_path) == []


def test_photos_words_and_recipes_that_changed_are_read_again(tmp_path: Path) -> None:
    file = some_photos(tmp_path / "photos")
    photo = file.with_name("2.png")
    started(file, tmp_path)
    before = photo.stat()
    Image.new("RGB", (16, 16), (120, 1, 200)).save(photo)
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert photo.stat().st_mtime_ns == before.st_mtime_ns
    assert len(started(file, tmp_path)) == 4, "a photo, with the time and perhaps the size it had"
    file.write_text(file.read_text().replace("a cat with", "the cat with"))
    assert len(started(file, tmp_path)) == 4, "words"
    for settings in ({"sizes": ((16, 8),)}, {"seed": 1}, {"nothing_share": 0.5}):
        assert len(started(file, tmp_path, **settings)) == 4
    assert len(started(file, tmp_path, "npedit.steps=5")) == 5
    assert len(started(file, tmp_path, "npedit.negative_prompt=bad")) == 4
    assert len(started(file, tmp_path, "npedit.context=unedited")) == 4
    assert started(file, tmp_path, "npedit.context=unedited") == []


def test_captions_that_were_not_read_before_are_read_again(tmp_path: Path) -> None:
    file, bad = some_photos(tmp_path / "photos"), "npedit.negative_prompt=bad"
    started(file, tmp_path, bad, "npedit.preserve=everywhere")
    assert started(file, tmp_path, bad, "npedit.preserve=everywhere") == []
    assert len(started(file, tmp_path, bad, "npedit.preserve=unedited")) == 4


def test_what_other_examples_need_is_made_at_the_next_start(tmp_path: Path) -> None:
    file = some_photos(tmp_path / "photos")
    started(file, tmp_path)
    photos = PhotoSource.of(open_table(file), sizes=((16, 16),), group=1, seed=0, nothing_share=0.0)
    shown = dataclasses.replace(photos.batch([0]), instructions=("wear a scarf",))
    recipe = load_recipe("demo", ["warmup.steps=0", "npedit.steps=4", "npedit.batch=1", "npedit.redraw_weight=0.0"])
    store = Store.of(tmp_path / "cache", base(tmp_path / "base"), "float32")
    fill(store, ToyBackbone.build(seed=0), recipe, photos, shown, ALONE, photos.state())
    assert store.has(prompt_key("wear a scarf"))


def test_ranks_know_their_own_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda tensor, operation: None)
    file = some_photos(tmp_path / "photos")
    assert [started(file, tmp_path, ranks=Ranks(rank, 2)) for rank in range(2)] == [[0, 2], [1, 3]]
    assert [started(file, tmp_path, ranks=Ranks(rank, 2)) for rank in range(2)] == [[], []]
    assert started(file, tmp_path) == [0, 1, 2, 3], "what other ranks needed is not known to one"


def test_an_entry_that_is_missed_in_training_is_looked_for_at_the_next_start(tmp_path: Path) -> None:
    """Whatever the list has left out, such as what another version of a decoder made."""
    file = some_photos(tmp_path / "photos")
    started(file, tmp_path)
    store = Store.of(tmp_path / "cache", base(tmp_path / "base"), "float32")
    with pytest.raises(DataError, match="run the same recipe again"):
        store.read(prompt_key("fly to the moon"), "it")
    assert started(file, tmp_path) == [0, 1, 2, 3]


def test_a_store_that_cannot_be_written_to_serves_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = some_photos(tmp_path / "photos")
    started(file, tmp_path)
    for needed in tmp_path.rglob(LISTS):
        needed.unlink()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert [len(started(file, tmp_path)) for _ in range(2)] == [4, 4]
    assert not list(tmp_path.rglob(LISTS))


def test_a_fill_that_ends_early_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    file = some_photos(tmp_path / "photos")
    whole = file.with_name("3.png").read_bytes()
    file.with_name("3.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"3\.png"):
        started(file, tmp_path)
    assert not list(tmp_path.rglob(LISTS))
    file.with_name("3.png").write_bytes(whole)
    assert started(file, tmp_path) == [0, 1, 2, 3]
