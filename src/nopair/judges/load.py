"""Open a judge of whatever family a checkpoint folder holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import torch

from nopair.errors import ModelError
from nopair.judges import internvl, llava_onevision, qwen_vl, smolvlm
from nopair.judges.folder import family_of
from nopair.judges.vision_language import VisionLanguageJudge
from nopair.precision import Precision

FAMILIES: Final[dict[str, Callable[[Path, Precision], VisionLanguageJudge]]] = {
    "idefics3": smolvlm.load_idefics3,
    "internvl": internvl.load,
    "llava_onevision": llava_onevision.load,
    "qwen2_5_vl": qwen_vl.load_qwen2_5_vl,
    "qwen3_vl": qwen_vl.load_qwen3_vl,
    "smolvlm": smolvlm.load_smolvlm,
}
"""Known families by the `model_type` of their config.json."""


def load_judge(
    folder: Path, dtype: torch.dtype = torch.float32, bits: Literal[4, 8] | None = None
) -> VisionLanguageJudge:
    """A frozen judge from an ordinary checkpoint folder: safetensors weights, tokenizer, image processor, template.

    Nothing is downloaded and no code from the folder is run. With `bits`, the language model is quantised (int8, or
    NF4) while it is read, on the current GPU or, int8 only, on a machine without one; it computes in `dtype`, and the
    vision tower stays as it is.

    Raises:
        ModelError: the folder is missing, incomplete, or of a family not in `FAMILIES`; or 4 `bits` without a GPU.
        MissingExtraError: `bits` without bitsandbytes.
        JudgeError: Yes and No cannot be told apart by one token, or the chat template leaves out images.
    """
    family = family_of(folder)
    if family not in FAMILIES:
        raise ModelError(
            f"the judge in {folder} is of the family {family!r}; nopair knows {', '.join(sorted(FAMILIES))}"
        )
    return FAMILIES[family](folder, Precision(dtype, bits))
