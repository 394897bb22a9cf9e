"""How far judges' differentiable preparation of images is from their own image processors, at the published sizes.

The configs are those that the planner has; no weights are needed. Prints the table of docs/judges.md: largest and mean
error in levels of 1/255, over noise, edges, waves and a photo, of 512 x 512 and 683 x 1024 pixels.
"""

import numpy as np
import torch
import transformers
from PIL import Image
from skimage.data import astronaut
from torch import Tensor

from nopair.config import JudgeConfig
from nopair.judges.vision_language import Family
from nopair.planning.architecture import architecture
from nopair.planning.judges import shape_judge

JUDGES = (
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "OpenGVLab/InternVL3-8B-hf",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
)
KINDS = ("noise", "edges", "waves", "photo")
SIZES = ((512, 512), (683, 1024))


def picture(kind: str, height: int, width: int) -> np.ndarray:
    """An 8-bit image of that size."""
    rng = np.random.default_rng(0)
    if kind == "noise":
        return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if kind == "edges":
        return 255 * rng.integers(0, 2, (height, width, 3), dtype=np.uint8)
    if kind == "photo":
        return np.asarray(Image.fromarray(astronaut()).resize((width, height)))
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (7 + c) + y / (11 - c)) for c in range(3)]
    return np.round(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)


def prepared(name: str) -> tuple[Family, object]:
    """A published judge's preparation, and its own image processor."""
    judge = architecture(name)
    settings = judge.config("preprocessor_config.json")
    kind = getattr(transformers, settings["image_processor_type"] + "Pil")
    return shape_judge(judge, JudgeConfig(path=name)).family, kind.from_dict(settings)


def errors(family: Family, processor: object, image: np.ndarray) -> Tensor:
    """Ours less the processor's, in levels; two images, so that LLaVA-OneVision makes no tiles."""
    theirs = processor([[Image.fromarray(image)] * 2], return_tensors="pt")["pixel_values"]  # pyright: ignore
    ours = family.prepare(torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float().repeat(2, 1, 1, 1) / 255)
    assert ours.numel() == theirs.numel()
    difference = (ours.view_as(theirs) - theirs).abs()
    by_channel = difference.view(len(difference), 3, -1) if difference.dim() == 2 else difference.flatten(-2)
    return 255 * by_channel * torch.tensor(processor.image_std)[:, None]  # pyright: ignore


def main() -> None:
    """Print a row for each judge."""
    print("| judge | largest error | mean error |\n|---|---|---|")
    for name in JUDGES:
        family, processor = prepared(name)
        found = [errors(family, processor, picture(kind, *size)) for kind in KINDS for size in SIZES]
        largest = max(error.max().item() for error in found)
        mean = max(error.mean().item() for error in found)
        print(f"| {name.rpartition('/')[2]} | {largest:.2f} | {mean:.2f} |", flush=True)


if __name__ == "__main__":
    main()
