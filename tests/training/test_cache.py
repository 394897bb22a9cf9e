"""What was encoded before: found again by content, and by nothing else."""

import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from nopair.backbones.base import Backbone
from nopair.backbones.fake import ToyBackbone
from nopair.config import load_recipe
from nopair.errors import DataError, OutputError
from nopair.training.cache import CachedBackbone, Store, fill, image_key, prompt_key
from nopair.training.parallel import Ranks
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
    for batch in (source.batch(range(6)), source.batch([90])):
        for prompts in (batch.captions, batch.instructions, batch.edited_captions):
            found, made = cached.encode_text(prompts), toy.encode_text(prompts)
            assert found.lengths == made.lengths
            assert torch.equal(found.features, made.features)
        assert torch.equal(cached.encode_image(batch.reference), toy.encode_image(batch.reference))
    other = cached.with_transformer(ToyBackbone.build(seed=1).transformer)
    assert other.store == cached.store
    assert other.transformer is not cached.transformer


def test_what_the_fake_score_sees_afresh_is_there_too(tmp_path: Path) -> None:
    """Its records follow those of the student's steps (`nopair.training.generated.Fresh`)."""
    fresh = ["data.cache=" + str(tmp_path / "cache"), "npedit.fake_samples=fresh", "npedit.fake_steps=2"]
    training = compose(load_recipe("demo", [*SHORT, *fresh]))
    for step in range(2):
        training.npedit.step(step)


def test_what_stands_for_an_edited_place_is_there_too(tmp_path: Path) -> None:
    context = ["data.cache=" + str(tmp_path / "cache"), "npedit.context=unedited"]
    compose(load_recipe("demo", [*SHORT, *context])).npedit.step(0)


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
