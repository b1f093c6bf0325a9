"""Weights for images of another number of channels: the first convolution of a backbone is inflated.

A filter of the stem has a plane for each channel. Of m channels that become n:

    n > m    the first m planes stay, new ones are the mean of the m
    n < m    every plane is the mean: which channels they are is not known
    both     all are multiplied by m / n

So the sum over the channels stays, and with it the response to an image whose channels are equal.

Source: temporal segment networks (Wang et al., arXiv:1608.00859, 3.2: cross-modality initialisation by the mean of the
RGB planes); I3D (Carreira and Zisserman, arXiv:1705.07750, 2.3: inflated filters are divided by their number, so that
the response stays).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from config import PER_CHANNEL_SETTINGS, Config, for_channels

from .checkpoint import Checkpoint

STEM = "backbone.stem.weight"  # [filters, channels, 7, 7]


def inflate(weight: Tensor, count: int) -> Tensor:
    """A stem's weights [filters, m, h, w] for images of `count` channels: [filters, count, h, w]."""
    channels = weight.shape[1]
    mean = weight.mean(dim=1, keepdim=True)
    kept = [weight] if count >= channels else []
    planes = torch.cat([*kept, mean.expand(-1, count - channels * len(kept), -1, -1)], dim=1)
    return planes * (channels / count)


def settings_for_channels(stored: Mapping[str, Any], count: int) -> dict[str, Any]:
    """IMAGE_CHANNEL_COUNT and the settings that follow it, from those of a checkpoint."""
    follow = {name: for_channels(tuple(stored[name]), count) for name in PER_CHANNEL_SETTINGS if name in stored}
    return {"IMAGE_CHANNEL_COUNT": count, **follow}


def fit_images(checkpoint: Checkpoint, config: Config) -> tuple[Checkpoint, list[str]]:
    """A checkpoint as the start of a training on images of another kind: of other channels, or another PIXEL_RANGE.

    config: of the training.

    Returns: the checkpoint, which is the same one if it fits already; sentences about what was done.
    """
    stored, tensors, sentences = dict(checkpoint["config"]), dict(checkpoint["model"]), []
    before, count = stored.get("IMAGE_CHANNEL_COUNT", 3), config.IMAGE_CHANNEL_COUNT
    if before != count:
        stored |= {name: getattr(config, name) for name in ("IMAGE_CHANNEL_COUNT", *PER_CHANNEL_SETTINGS)}
        done = "the backbone is not this project's, and its first layer starts anew"
        if STEM in tensors and tensors[STEM].shape[1:2] == (before,):
            tensors[STEM] = inflate(tensors[STEM], count)
            planes = "the new ones get their mean" if count > before else "each gets their mean"
            done = f"{planes}, and all are multiplied by {before}/{count}"
        sentences.append(f"images have {count} channels, those of {checkpoint.name} {before}: {done}")
    pixel_range = stored.get("PIXEL_RANGE", "depth")  # older releases had no other
    if pixel_range != config.PIXEL_RANGE:
        sentences.append(
            f"{checkpoint.name} learned from pixels scaled by PIXEL_RANGE {pixel_range}; from now on it is "
            f"{config.PIXEL_RANGE}"
        )
        stored["PIXEL_RANGE"] = config.PIXEL_RANGE
    if not sentences:
        return checkpoint, []
    return Checkpoint({**checkpoint, "config": stored, "model": tensors}).named(checkpoint.name), sentences
