"""From one square grid of pixels to another, where an image has another size than the model is made for (ours)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_maps(maps: Tensor, side: int) -> Tensor:
    """Maps (…, P) of a square grid on another one, (…, side * side), bilinearly. Their own size returns them."""
    trained = math.isqrt(maps.shape[-1])
    if side == trained:
        return maps
    grid = maps.float().reshape(-1, 1, trained, trained)
    return _interpolate(grid, (side, side)).reshape(*maps.shape[:-1], side**2).to(maps.dtype)


def resize_filters(filters: Tensor, num_pixels: int) -> Tensor:
    """A linear layer's weight (C, P), seen as C filters over a square grid, for a grid of `num_pixels` Q: (C, Q).

    The constant P / Q keeps the size of the layer's sum over pixels about the same.
    """
    trained, side = math.isqrt(filters.shape[-1]), math.isqrt(num_pixels)
    resized = _interpolate(filters.float().view(1, -1, trained, trained), (side, side)).view(-1, num_pixels)
    return (resized * (filters.shape[-1] / num_pixels)).to(filters.dtype)


def gather_for_filters(maps: Tensor, num_pixels: int) -> Tensor:
    """Bring maps (…, Q) to the grid of a linear layer made for `num_pixels` P, which is then called: (…, P).

    The layer gives the same as with its filters resized by `resize_filters`: a filter w resized is R w R', and its
    product with a map m is that of w itself with R' m R. At the trained size the maps themselves are returned.

    Raises:
        ValueError: P and Q differ, and not both are squares.
    """
    if maps.shape[-1] == num_pixels:
        return maps
    side, trained = math.isqrt(maps.shape[-1]), math.isqrt(num_pixels)
    if side**2 != maps.shape[-1] or trained**2 != num_pixels:
        raise ValueError(
            f"M3Att was made for {num_pixels} pixels and got {maps.shape[-1]}. Its last layer can be resampled from "
            "one square grid to another only; give it as many as it was made for."
        )
    precise = torch.promote_types(maps.dtype, torch.float32)
    identity = torch.eye(trained, dtype=precise, device=maps.device)[None, None]
    resizing = _interpolate(identity, (side, trained))[0, 0].to(maps.dtype)  # R
    gathered = resizing.mT @ maps.unflatten(-1, (side, side)) @ resizing
    return gathered.flatten(-2) * (num_pixels / maps.shape[-1])


def _interpolate(maps: Tensor, size: tuple[int, int]) -> Tensor:
    shrinks = size[0] < maps.shape[-2]
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
