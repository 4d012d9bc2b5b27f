"""CLIP similarity of views to the input picture and to the prompt (paper, Table 1)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from im3d.core.images import over, to_bytes
from im3d.shared.paths import models_folder


@dataclass(frozen=True)
class Clip:
    """A CLIP model with its preprocessing.

    Attributes:
        name: Stands in the report.
        model: transformers' CLIPModel.
        processor: transformers' CLIPProcessor.
    """

    name: str
    model: Any
    processor: Any

    def image_features(self, rgba: NDArray[np.float32]) -> torch.Tensor:
        """Unit vectors (C, D) of (C, S, S, 4) pictures on white."""
        pictures = [to_bytes(picture) for picture in over(rgba)]
        inputs = self.processor.image_processor(images=pictures, return_tensors="pt")
        with torch.no_grad():
            pooled = self.model.vision_model(**inputs).pooler_output
            return torch.nn.functional.normalize(self.model.visual_projection(pooled), dim=-1)

    def text_features(self, text: str) -> torch.Tensor:
        """A unit vector (1, D)."""
        inputs = self.processor.tokenizer([text], return_tensors="pt", truncation=True)
        with torch.no_grad():
            pooled = self.model.text_model(**inputs).pooler_output
            return torch.nn.functional.normalize(self.model.text_projection(pooled), dim=-1)


def load_clip(folder: Path | None = None) -> Clip | str:
    """The CLIP in `folder` (transformers' layout), or the reason why there is none.

    Args:
        folder: By default `clip` in the models folder. Nothing is ever downloaded here.
    """
    folder = folder or models_folder() / "clip"
    if not (folder / "config.json").is_file():
        return f"no CLIP weights in {folder}"
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        return f"the CLIP weights in {folder} cannot be loaded: {error}"
    return Clip(folder.name, model, processor)


def clip_similarity(clip: Clip, views: NDArray[np.float32], image: NDArray[np.float32], text: str) -> dict[str, float]:
    """Mean cosine of the views with the input and with the text, times 100 as in the paper.

    Args:
        clip: The model.
        views: (C, S, S, 4).
        image: (S, S, 4), the input picture.
        text: The prompt; "" leaves the entry out.
    """
    seen = clip.image_features(views)
    scores = {"clip_image": 100 * float((seen @ clip.image_features(image[None]).T).mean())}
    if text:
        scores["clip_text"] = 100 * float((seen @ clip.text_features(text).T).mean())
    return scores
