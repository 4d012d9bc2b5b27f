"""A picture from a sentence: the first stage of a job that has no picture (paper, figure 2).

The models are those of models.toml, in the layout of diffusers' pipelines; nothing is fetched here. A model is loaded,
makes one picture and is freed, since the orbit model needs the memory next.
"""

from __future__ import annotations

import gc
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from im3d.core.images import FloatArray, as_rgba
from im3d.core.progress import Progress
from im3d.errors import InputError, ModelError, OutOfMemoryError
from im3d.models.cache import MODELS
from im3d.models.catalog import find_model, installed, models, require, unreadable
from im3d.settings import ImageMemory, ImageSettings

GIGABYTE = 2**30
# What an orbit model can use: one whole object, seen a little from above, before a background that can be removed.
ORBIT_WORDS = (
    "a single object, the whole object in the frame, three-quarter front view from slightly above, standing still, "
    "plain white background, soft even light, no shadow"
)
# Memory beside the weights for a picture of 1024²: activations, the autoencoder's decoder, the CUDA context.
WORKING_GB = 3.0


@dataclass(frozen=True)
class Recipe:
    """How a text-to-image model is called.

    Attributes:
        pipeline: Its class in diffusers.
        steps: Denoising steps its makers advise.
        guidance: Scale of the classifier-free guidance; off in distilled models.
        dtype: Precision of the weights on a GPU.
        size: Side of the picture.
    """

    pipeline: str
    steps: int
    guidance: float
    dtype: torch.dtype
    size: int = 1024


RECIPES = {
    "flux2_klein": Recipe("Flux2KleinPipeline", steps=4, guidance=1.0, dtype=torch.bfloat16),
    # Nine points of the schedule are eight evaluations of the network.
    "z_image_turbo": Recipe("ZImagePipeline", steps=9, guidance=0.0, dtype=torch.bfloat16),
    "sdxl": Recipe("StableDiffusionXLPipeline", steps=30, guidance=6.0, dtype=torch.float16),
}

# Verbs that make a video model move the object from view to view, the failure that the paper names (A.4).
_MOTION = """
    blowing bouncing charging chasing climbing crawling dancing diving drifting dripping exploding falling
    fighting flapping flying galloping gliding hopping hovering jogging juggling jumping kicking leaping lunging
    marching melting orbiting pouncing prancing prowling rearing riding roaring running skateboarding skating
    skiing sneaking somersaulting soaring spinning splashing sprinting strolling surfing swimming swinging
    swooping throwing trotting tumbling twirling walking waving wriggling
    bounces climbs crawls dances gallops jumps leaps prances runs soars sprints swims trots tumbles twirls
"""
_MOTION_PHRASES = r"in (?:full )?motion|in action|in flight|mid[- ](?:air|jump|leap|stride|swing)"
_MOTION_WORDS = re.compile(rf"\b(?:{'|'.join(_MOTION.split())}|{_MOTION_PHRASES})\b", re.IGNORECASE)


def choose_image_model(settings: ImageSettings) -> str:
    """The name of the text-to-image model: the requested one, or with "auto" the first that is installed.

    Raises:
        InputError: The settings describe a picture that no model can make.
        ModelError: It is not installed; the message names the command that gets it and its size.
    """
    if settings.size % 16 or settings.size < 0 or settings.steps < 0:
        raise InputError(
            f"A picture of {settings.size} pixels in {settings.steps} steps cannot be made.",
            "Use a multiple of 16 for image.size, a number from 1 for image.steps, or 0 for what suits the model.",
        )
    if settings.model != "auto":
        require(settings.model)
        return settings.model
    names = [m.name for m in models().values() if m.purpose == "image"]
    found = next((name for name in names if installed(name)), None)
    if found is None:
        default = find_model(names[0])
        raise ModelError(
            "No text-to-image model is installed.",
            f"Download {default.title} ({default.size}), or start from a picture.",
            f"download {default.name}",
        )
    return found


def orbit_prompt(prompt: str) -> str:
    """The prompt with the words that help orbits."""
    return f"{prompt.strip().rstrip('.,;')}, {ORBIT_WORDS}"


def motion_warning(prompt: str) -> str | None:
    """A sentence for the user where the prompt tells of motion, which an orbit of still views cannot show."""
    found = _MOTION_WORDS.search(prompt)
    if found is None:
        return None
    return (
        f'The prompt says "{found[0]}": views of something that moves may not fit together. '
        "If the object looks doubled or torn, describe it standing still."
    )


def generate_picture(
    prompt: str, model: str, settings: ImageSettings, seed: int, device: torch.device, progress: Progress
) -> FloatArray:
    """A picture of the prompt.

    Args:
        prompt: One sentence.
        model: Name of an installed text-to-image model.
        settings: Whether words are added to the prompt, and how memory is spent.
        seed: Of the noise, which is sampled on the CPU and so the same on every machine.
        device: Where to compute.
        progress: Told of each denoising step.

    Returns:
        (size, size, 4) float32 in [0, 1], opaque.

    Raises:
        ModelError: The model is not installed, or its files are not what they should be.
        OutOfMemoryError: The device is too small; the message names the next smaller mode.
        CancelledError: Raised by `progress`.
    """
    recipe, folder = RECIPES[model], require(model)
    size = settings.size or recipe.size
    steps = settings.steps or recipe.steps
    mode = choose_memory(settings.memory, folder, device)
    progress(0, steps)

    def stepped(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        progress(min(step + 1, steps), steps)
        return tensors

    try:
        with _out_of_memory_explained(model, mode, device):
            pipeline = load_pipeline(model, folder, device, mode)
            image = pipeline(
                prompt=orbit_prompt(prompt) if settings.orbit_prompt else prompt,
                height=size,
                width=size,
                num_inference_steps=steps,
                guidance_scale=recipe.guidance,
                generator=torch.Generator("cpu").manual_seed(seed),
                callback_on_step_end=stepped,
            ).images[0]
    finally:
        pipeline = None
        gc.collect()
        MODELS.rest()
    return as_rgba(image)


def load_pipeline(model: str, folder: Path, device: torch.device, mode: str) -> Any:
    """A model's diffusers pipeline, arranged in memory: the one that an earlier job read, or else read from its files.

    Args:
        model: Its name.
        folder: Its files, in diffusers' layout.
        device: Where it computes.
        mode: "whole": all networks on the device. "offload": each there only while it works. "compressed": the same,
            with the weights in 8 bits (float8, unpacked layer by layer), which halves the memory and costs a little
            quality.

    Raises:
        ModelError: The folder does not hold this model.
    """
    pipeline = MODELS.get("image", [folder], (str(device), mode), lambda: _read_pipeline(model, folder, device, mode))
    return pipeline.to(device) if mode == "whole" else pipeline


def _read_pipeline(model: str, folder: Path, device: torch.device, mode: str) -> Any:
    """The pipeline with its networks in the computer's memory, arranged so that it needs no more than the mode gives.

    Raises:
        ModelError: The folder does not hold this model.
    """
    import diffusers
    import transformers

    # The job's own progress is shown instead.
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    recipe = RECIPES[model]
    # On the CPU half precision of this kind is slow, and in places missing.
    dtype = torch.float32 if device.type == "cpu" and recipe.dtype == torch.float16 else recipe.dtype
    try:
        described = json.loads((folder / "model_index.json").read_text(encoding="utf-8")).get("_class_name")
        if described != recipe.pipeline:
            raise ValueError(f"it is a {described}, not a {recipe.pipeline}")
        pipeline = getattr(diffusers, recipe.pipeline).from_pretrained(
            folder, torch_dtype=dtype, variant=find_model(model).variant, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise unreadable(folder, error) from error
    pipeline.set_progress_bar_config(disable=True)
    if mode == "compressed":
        for network in _large_networks(pipeline):
            _compress(network, dtype)
    if mode != "whole":
        # Decoding a picture of 1024² at once takes as much memory as a network does.
        pipeline.vae.enable_tiling()
        pipeline.enable_model_cpu_offload(device=device)
    return pipeline


def choose_memory(wanted: ImageMemory, folder: Path, device: torch.device) -> str:
    """The requested memory mode, or with "auto" the first that the free GPU memory allows; on the CPU "whole".

    Raises:
        OutOfMemoryError: Even the smallest does not fit.
    """
    if device.type != "cuda":
        return "whole"
    if wanted != "auto":
        return wanted
    from im3d.models.memory_modes import free_gigabytes

    free, needs = free_gigabytes(device), memory_needs(folder)
    for mode, need in needs.items():
        if free >= need:
            return mode
    raise OutOfMemoryError(
        f"The picture needs {min(needs.values()):.1f} GB of free GPU memory; {free:.1f} GB are free.",
        "Close other programs that use the GPU, set image.model to a smaller one, or start from a picture.",
    )


def memory_needs(folder: Path) -> dict[str, float]:
    """GPU memory in GB that each mode needs for the networks in a folder, from the most to the least."""
    counts = [parameter_count(part) for part in folder.iterdir() if part.is_dir()]
    total, largest = (2 * n / GIGABYTE for n in (sum(counts), max(counts, default=0)))
    return {"whole": total + WORKING_GB, "offload": largest + WORKING_GB, "compressed": largest / 2 + WORKING_GB}


def parameter_count(folder: Path) -> int:
    """Parameters in a network's safetensors files, from their headers."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        count += sum(int(np.prod(entry["shape"])) for key, entry in header.items() if key != "__metadata__")
    return count


def _large_networks(pipeline: Any) -> Iterator[torch.nn.Module]:
    """The denoiser and the text encoders; the autoencoder is small and suffers from low precision."""
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and name != "vae":
            yield part


def _compress(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Keeps the weights in float8 and unpacks each layer while it works."""
    from diffusers.hooks import apply_layerwise_casting

    delicate = getattr(network, "_skip_layerwise_casting_patterns", None) or ()
    patterns = (*delicate, "norm", "embed", "lm_head")
    apply_layerwise_casting(
        network, storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype, skip_modules_pattern=patterns
    )


@contextmanager
def _out_of_memory_explained(model: str, mode: str, device: torch.device) -> Iterator[None]:
    """Turns an exhausted device into a sentence that names the next smaller mode.

    Raises:
        OutOfMemoryError: The device's memory, or the machine's, was not enough.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not isinstance(error, (torch.OutOfMemoryError, MemoryError)) and "can't allocate" not in str(error):
            raise
        smaller = {"whole": "offload", "offload": "compressed"}.get(mode) if device.type == "cuda" else None
        where = "GPU" if device.type == "cuda" else f"machine ({psutil.virtual_memory().total / GIGABYTE:.0f} GB)"
        raise OutOfMemoryError(
            f"{find_model(model).title} does not fit into the memory of the {where} in the mode {mode}.",
            f"Use the next smaller one: set image.memory to {smaller}."
            if smaller
            else "Close other programs, set image.model to a smaller one, or start from a picture.",
        ) from error
