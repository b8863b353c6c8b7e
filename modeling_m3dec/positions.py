"""Sine and cosine positions: added to the encoder's queries and keys (2-D), and to the words of Eq. 4 (1-D).

Computed in forward and in float32, so that there is no buffer to lose and one model serves every size.
"""

import torch
from torch import Tensor


def sine_positions(length: int, channels: int, device: torch.device) -> Tensor:
    """Positions 0 … length-1 as (length, channels) float32: sines in the even channels, cosines in the odd ones."""
    frequencies = 10000 ** (-torch.arange(0, channels, 2, device=device, dtype=torch.float32) / channels)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def sine_positions_2d(side: int, channels: int, device: torch.device) -> Tensor:
    """Positions of a square map, row by row, (side * side, channels) float32: half the channels for y, half for x."""
    line = sine_positions(side, channels // 2, device)
    y, x = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)
