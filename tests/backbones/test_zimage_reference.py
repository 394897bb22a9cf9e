"""The second way of giving Z-Image a reference: as the first of two frames, told the clean time."""

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor, nn

from nopair.backbones.roles import LoraRoles
from nopair.backbones.zimage import ZImageBackbone
from nopair.backbones.zimage_reference import DIALECT_FILE, Dialect, read_dialect
from nopair.errors import ModelError, OutputError

AUTHORS = Dialect(reference="frames", thinking=False)
PROMPTS = ["a red circle", "", "a much longer prompt, long enough to need more than one block of thirty-two tokens"]
SIZES = [(16, 16), (6, 10), (10, 6)]  # 6x10 latents make 2 x 15 tokens, which the library pads to 32
EPSILON = 2e-5


@pytest.fixture(scope="module")
def theirs(shared_backbone: ZImageBackbone) -> ZImageBackbone:
    """Only read."""
    return dataclasses.replace(shared_backbone, dialect=AUTHORS)


@pytest.fixture
def fresh(backbone: ZImageBackbone) -> ZImageBackbone:
    return dataclasses.replace(backbone, dialect=AUTHORS)


def _inputs(batch: int, size: tuple[int, int] = (16, 16)) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(batch, 4, *size), torch.rand(batch), torch.randn(batch, 4, *size)


def _stock_forward(
    transformer: ZImageTransformer2DModel, noisy: Tensor, reference: Tensor, t: float, prompt: Tensor
) -> Tensor:
    """The library's own forward of ONE two-frame image, in which every modulated block is told another time for the
    tokens of the first frame.
    """
    transformer = copy.deepcopy(transformer)
    tokens = noisy[0].numel() // 4
    noisy_time, clean_time = (transformer.t_embedder(torch.tensor([time * 1000])) for time in (1 - t, 1.0))

    def retell(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        told = torch.ones(1, args[0].shape[1], dtype=torch.long)
        told[:, :tokens] = 0
        if "c" in kwargs:  # the last layer
            return args, {"noise_mask": told, "c_noisy": noisy_time, "c_clean": clean_time}
        return (*args[:3], None, told, noisy_time, clean_time), {}

    for block in (*transformer.noise_refiner, *transformer.layers, *transformer.all_final_layer.values()):
        block.register_forward_pre_hook(retell, with_kwargs=True)
    image = torch.stack([reference, noisy], dim=1)
    with torch.no_grad():
        return -transformer([image], torch.tensor([1 - t]), [prompt], return_dict=False)[0][0][:, 1]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_it_is_the_stock_forward_of_two_frames_with_the_clean_time_for_the_first(
    theirs: ZImageBackbone, size: tuple[int, int], prompt: str
) -> None:
    noisy, t, reference = _inputs(1, size)
    text = theirs.encode_text([prompt])
    with torch.no_grad():
        expected = _stock_forward(theirs.transformer, noisy[0], reference[0], t.item(), text.features[0])
        velocity = theirs.velocity(noisy, t, text, reference)[0]
    torch.testing.assert_close(velocity, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1


def test_at_the_clean_time_it_is_the_stock_forward_as_it_is(theirs: ZImageBackbone) -> None:
    """Then all tokens are told the same, so nothing of ours is left to differ."""
    noisy, _, reference = _inputs(3, (12, 20))
    text = theirs.encode_text(PROMPTS)
    prompts = [row[:length] for row, length in zip(text.features, text.lengths, strict=True)]
    images = list(torch.stack([reference, noisy], dim=2))
    with torch.no_grad():
        output = theirs.transformer(images, torch.ones(3), prompts, return_dict=False)[0]
        velocity = theirs.velocity(noisy, torch.zeros(3), text, reference)
    assert torch.equal(velocity, -torch.stack(output)[:, :, 1])


def test_the_dialects_are_not_the_same(theirs: ZImageBackbone, shared_backbone: ZImageBackbone) -> None:
    noisy, t, reference = _inputs(2)
    text = theirs.encode_text(PROMPTS[:2])
    with torch.no_grad():
        velocities = [backbone.velocity(noisy, t, text, reference) for backbone in (theirs, shared_backbone)]
        assert (velocities[0] - velocities[1]).abs().max() > 0.01
        plain = [backbone.velocity(noisy, t, text) for backbone in (theirs, shared_backbone)]
    assert torch.equal(*plain)


def test_without_thinking_the_prompt_ends_in_an_empty_thought(
    theirs: ZImageBackbone, shared_backbone: ZImageBackbone
) -> None:
    thought = len("<think>\n\n</think>\n\n")
    lengths = [backbone.encode_text(PROMPTS[:1]).lengths[0] for backbone in (theirs, shared_backbone)]
    assert lengths[0] == lengths[1] + thought


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_batch_is_its_samples(theirs: ZImageBackbone, size: tuple[int, int]) -> None:
    noisy, t, reference = _inputs(3, size)
    with torch.no_grad():
        together = theirs.velocity(noisy, t, theirs.encode_text(PROMPTS), reference)
        alone = [
            theirs.velocity(noisy[i : i + 1], t[i : i + 1], theirs.encode_text([PROMPTS[i]]), reference[i : i + 1])
            for i in range(3)
        ]
    torch.testing.assert_close(together, torch.cat(alone), atol=EPSILON, rtol=0)


def test_the_reference_gets_gradient_and_only_its_own_samples(theirs: ZImageBackbone) -> None:
    noisy, t, reference = _inputs(2)
    noisy.requires_grad_(True)
    reference.requires_grad_(True)
    v = theirs.velocity(noisy, t, theirs.encode_text(PROMPTS[:2]), reference)
    for gradient in torch.autograd.grad(v[0].square().sum(), [noisy, reference]):
        assert gradient[0].abs().min() > 0
        assert torch.count_nonzero(gradient[1]) == 0


def test_checkpointing_does_not_change_gradients(fresh: ZImageBackbone) -> None:
    noisy, t, reference = _inputs(2)
    text = fresh.encode_text(PROMPTS[1:])
    parameters = list(fresh.transformer.parameters())

    def gradients() -> list[Tensor]:
        loss = fresh.velocity(noisy, t, text, reference).square().mean()
        return list(torch.autograd.grad(loss, parameters, allow_unused=True))

    plain, calls = gradients(), []
    fresh.transformer.enable_gradient_checkpointing()
    for block in (fresh.transformer.noise_refiner[0], fresh.transformer.context_refiner[0]):
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    checkpointed = gradients()
    assert len(calls) == 4  # forward, and again in backward
    assert all(gradient is not None for gradient in plain)
    torch.testing.assert_close(checkpointed, plain, atol=0, rtol=0)


def test_it_trains_as_adapters_and_exports(fresh: ZImageBackbone) -> None:
    noisy, t, reference = _inputs(2)
    text = fresh.encode_text(PROMPTS[:2])
    roles = LoraRoles.of(fresh, rank=4, alpha=4.0, targets=("to_q", "w1"), seed=0)
    weights = {name: torch.randn(weight.shape) * 0.1 for name, weight in roles.trainable("student").items()}
    with torch.no_grad():
        for name, weight in roles.trainable("student").items():
            weight.copy_(weights[name])
        wanted = roles.student.velocity(noisy, t, text, reference)
        exported = fresh.with_transformer(roles.export("student", weights))
        torch.testing.assert_close(exported.velocity(noisy, t, text, reference), wanted, atol=EPSILON, rtol=0)
    assert exported.dialect == AUTHORS
    loss = roles.student.velocity(noisy, t, text, reference).square().mean()
    roles.backward(loss, "student")
    gradients = [weight.grad for weight in roles.trainable("student").values()]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients)


def test_half_precision_weights_take_and_give_float32(fresh: ZImageBackbone) -> None:
    noisy, t, reference = _inputs(2)
    text = fresh.encode_text(PROMPTS[:2])
    with torch.no_grad():
        exact = fresh.velocity(noisy, t, text, reference)
        half = fresh.with_transformer(fresh.transformer.bfloat16())
        rounded = half.velocity(noisy, t, text, reference)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1 * exact.abs().mean()


# --- on disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", [Dialect(), AUTHORS, Dialect(thinking=False), Dialect(reference="frames")], ids=str)
def test_the_dialect_is_saved_with_the_model(fresh: ZImageBackbone, tmp_path: Path, dialect: Dialect) -> None:
    fresh.save(tmp_path)
    dataclasses.replace(fresh, dialect=dialect).save(tmp_path)
    assert ZImageBackbone.load(tmp_path).dialect == dialect
    assert (tmp_path / DIALECT_FILE).exists() == (dialect != Dialect())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "the file: Invalid JSON"),
        ("[]", "the file: "),
        ('{"reference": "channels"}', "reference: Input should be 'omni' or 'frames'"),
        ('{"thinking": "no"}', "thinking: Input should be a valid boolean"),
        ('{"refrence": "frames"}', "refrence: Extra inputs are not permitted"),
    ],
)
def test_another_dialect_is_told_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / DIALECT_FILE).write_text(content)
    with pytest.raises(ModelError) as error:
        read_dialect(tmp_path)
    assert said in str(error.value)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_in_its_place_is_told(theirs: ZImageBackbone, tmp_path: Path) -> None:
    (tmp_path / DIALECT_FILE).mkdir()
    with pytest.raises(ModelError, match="cannot be read"):
        read_dialect(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"):
        theirs.save(tmp_path)
