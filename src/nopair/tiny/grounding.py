"""Grounding: in the hidden layers of the tiny base, a patch is to be most like the word for what it shows.

In a large text-to-image model, words attend to the regions they name; a tiny one does not find that by itself in the
steps it has. It is an aid of pretraining only, in the spirit of representation alignment (REPA, arXiv 2410.06940), and
leaves nothing behind in the checkpoint.
"""

from collections.abc import Sequence
from typing import Final

import torch
import torch.nn.functional as F
from diffusers import ZImageTransformer2DModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from nopair.backbones.zimage import PROMPT_BLOCK
from nopair.tiny.sights import NONE, WORDS, labels, word_id
from nopair.world.scenes import PATTERNS, SHAPES, Scene

LAYERS: Final = (1, 2, 3)
"""Main layers whose states are compared."""
_SHARPNESS: Final = 16.0
"""Scale of the cosines that are read as logits."""
_LIKE: Final = 0.5
"""A patch whose cosine with every word is less than this is like none of them."""
NO_WORD: Final = -1
"""Target of a patch for whose shape or pattern the text has no word."""
_SHAPE, _PATTERN = WORDS.index(SHAPES), WORDS.index(PATTERNS)
"""Groups of `sights.labels`."""


class Grounding:
    """Watches a transformer's main layers; after each of its forward passes, `loss` compares patches with words."""

    def __init__(self, transformer: ZImageTransformer2DModel, tokenizer: PreTrainedTokenizerFast) -> None:
        self._shapes = [word_id(tokenizer, word) for word in SHAPES]
        self._patterns = [word_id(tokenizer, word) for word in PATTERNS]
        self._states: dict[int, Float[Tensor, "b token d"]] = {}
        for index in LAYERS:
            transformer.layers[index].register_forward_hook(self._keeper(index))

    def _keeper(self, index: int):  # noqa: ANN202 (the hook's type is torch's)
        def keep(module: nn.Module, arguments: object, output: Tensor) -> None:
            self._states[index] = output

        return keep

    def targets(self, scenes: Sequence[Scene], ids: Int[Tensor, "b token"]) -> Int[Tensor, "b patch"]:
        """For every patch the place in its caption of the word for its shape or pattern; NO_WORD where it has none."""
        shown = labels(scenes)
        targets = torch.full(shown.shape[:2], NO_WORD)
        for i, row in enumerate(ids.tolist()):
            for group, words in ((_SHAPE, self._shapes), (_PATTERN, self._patterns)):
                for label, word in enumerate(words):
                    if word in row:
                        targets[i, shown[i, :, group] == label] = row.index(word)
        return targets.to(ids.device)

    def loss(
        self, targets: Int[Tensor, "b patch"], lengths: Sequence[int], t: Float[Tensor, " b"], *, text_first: bool
    ) -> Float[Tensor, ""]:
        """Mean over the layers of `finding_loss` for the last forward pass, a patch counting as much as it is clean.

        `text_first` is the order of its token sequence: captions before patches, or after.
        """
        clean = (1 - t)[:, None].expand(targets.shape)
        losses = []
        for states in self._states.values():
            texts = states[:, :PROMPT_BLOCK] if text_first else states[:, -PROMPT_BLOCK:]
            patches = states[:, PROMPT_BLOCK:] if text_first else states[:, :-PROMPT_BLOCK]
            losses.append(finding_loss(patches, texts, targets, lengths, clean))
        return torch.stack(losses).mean()

    def loss_with_reference(
        self, targets: Int[Tensor, "b patch"], lengths: Sequence[int], t: Float[Tensor, " b"]
    ) -> Float[Tensor, ""]:
        """`loss` for a forward pass with a reference, whose tokens stand between captions and target.

        The reference's patches count in full, as they are clean; the target's by half of their cleanness.
        """
        patches = targets.shape[1]
        clean = (1 - t)[:, None].expand(targets.shape)
        losses = []
        for states in self._states.values():
            texts = states[:, :PROMPT_BLOCK]
            reference = states[:, PROMPT_BLOCK : PROMPT_BLOCK + patches]
            target = states[:, PROMPT_BLOCK + patches : PROMPT_BLOCK + 2 * patches]
            losses.append(finding_loss(reference, texts, targets, lengths, torch.ones_like(clean)))
            losses.append(0.5 * finding_loss(target, texts, targets, lengths, clean))
        return 2 * torch.stack(losses).mean()


def finding_loss(
    patches: Float[Tensor, "b patch d"],
    texts: Float[Tensor, "b token d"],
    targets: Int[Tensor, "b patch"],
    lengths: Sequence[int],
    weights: Float[Tensor, "b patch"],
) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy of finding each patch's word by cosine among the first `lengths` tokens of its text.

    A patch with target NO_WORD is to be like none of them. Patches with target NONE do not count; with none that counts
    the loss is 0.
    """
    cosines = F.normalize(patches, dim=2) @ F.normalize(texts, dim=2).transpose(1, 2)
    padding = torch.arange(texts.shape[1])[None] >= torch.tensor(lengths)[:, None]
    logits = (_SHARPNESS * cosines).masked_fill(padding[:, None].to(cosines.device), -1e4)
    logits = torch.cat([logits, logits.new_full((*logits.shape[:2], 1), _SHARPNESS * _LIKE)], dim=2)
    targets = targets.masked_fill(targets == NO_WORD, texts.shape[1])
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=NONE, reduction="none")
    weights = weights * (targets != NONE)
    return (losses.view(targets.shape) * weights).sum() / weights.sum().clamp(min=1e-6)
