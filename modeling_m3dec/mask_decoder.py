"""Mask Decoder: § III-D, Fig. 6, and the rows of Table III."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .multi_head_attention import MultiHeadAttention


class MaskDecoder(nn.Module):
    """What the words have become is laid over the pixels, and four convolutions draw the mask.

    Args:
        hidden_size: C.
        num_pixels: P of the grid that "decoder_only" is made for.
        num_heads: heads of the self-attention on F_dec.
        max_words: T of the first convolution: channel t belongs to word position t.
        channels: of the convolutions, 512 in the paper.
        num_upsamplings: how many of the three gaps between the convolutions double the map, counted from the last.
        variant: a row of Table III. "dynamic_kernels": each word is the kernel of a 1x1 convolution over F_enc.
            "concatenated": the sum of the words beside F_enc. "decoder_only", VLT's: a map per word, F_enc not used.
    """

    def __init__(
        self,
        hidden_size: int,
        num_pixels: int,
        num_heads: int,
        max_words: int,
        channels: int = 512,
        num_upsamplings: int = 3,
        variant: str = "dynamic_kernels",
    ):
        super().__init__()
        self.variant = variant
        self.max_words = max_words
        self.upsample_from = 3 - num_upsamplings  # the first gap that doubles the map
        self.self_attention = MultiHeadAttention(hidden_size, num_heads)
        self.self_attention_norm = nn.LayerNorm(hidden_size)
        if variant == "decoder_only":
            self.word_maps = nn.Linear(hidden_size, num_pixels)  # bare, as the 1x1 convolution it stands for (ours)
        first = 2 * hidden_size if variant == "concatenated" else max_words
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False) for inputs in (first, channels, channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        # The last convolution has neither BN nor ReLU, else no logit could be negative.
        self.last_convolution = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, decoded: Tensor, pixels: Tensor, word_mask: Tensor, eager: bool = False) -> Tensor:
        """From F_dec (N, T, C) and F_enc (N, P, C) to logits (N, h, w). `word_mask` (N, T) is False on padding."""
        attended, _ = self.self_attention(decoded, decoded, decoded, word_mask, eager)
        kernels = self.self_attention_norm(decoded + attended)
        kernels = kernels.masked_fill(~word_mask[..., None], 0.0)  # (N, T, C), padding silenced after bias and norm

        maps = self.lay_over_pixels(kernels, pixels, word_mask)
        layers = zip([*self.convolutions, self.last_convolution], [*self.norms, None], strict=True)
        for number, (convolution, norm) in enumerate(layers):
            # Nearest upsampling (ours, as VLT) stands between them.
            maps = convolve_doubled(maps, convolution) if number > self.upsample_from else convolution(maps)
            if norm is not None:
                maps = norm(maps).relu()  # (N, 512, h, w)  Fig. 6
        return maps.squeeze(1)  # (N, h, w)

    def lay_over_pixels(self, kernels: Tensor, pixels: Tensor, word_mask: Tensor) -> Tensor:
        """The first convolution's input: (N, max_words, g, g), or (N, 2C, g, g) when concatenated."""
        num_words, num_pixels = kernels.shape[1], pixels.shape[1]
        side = math.isqrt(num_pixels)
        if self.variant == "concatenated":
            sentence = kernels.sum(dim=1, keepdim=True).expand_as(pixels)
            return torch.cat([sentence, pixels], dim=-1).mT.unflatten(-1, (side, side))
        if self.variant == "dynamic_kernels":
            maps = kernels @ pixels.mT  # (N, T, P)  the 1x1 convolution, bare
        else:
            maps = self.word_maps_at(kernels, side).masked_fill(~word_mask[..., None], 0.0)
        return F.pad(maps, (0, 0, 0, self.max_words - num_words)).unflatten(-1, (side, side))

    def word_maps_at(self, kernels: Tensor, side: int) -> Tensor:
        """VLT's maps (N, T, side * side). Another grid gets them resized; nothing sums over them."""
        return resize_maps(self.word_maps(kernels), side)

    def set_num_pixels(self, num_pixels: int) -> None:
        """Resize VLT's maps for good, as `forward` does for each grid they were not made for."""
        if self.variant == "decoder_only":
            side, layer = math.isqrt(num_pixels), self.word_maps
            layer.weight = nn.Parameter(resize_maps(layer.weight.detach().mT, side).mT.contiguous())
            layer.bias = nn.Parameter(resize_maps(layer.bias.detach(), side))
            layer.out_features = num_pixels


def resize_maps(maps: Tensor, side: int) -> Tensor:
    """Maps (…, P) of a square grid on another one, (…, side * side), bilinearly. Their own size returns them."""
    trained = math.isqrt(maps.shape[-1])
    if side == trained:
        return maps
    resized = F.interpolate(
        maps.float().reshape(-1, 1, trained, trained),
        size=(side, side),
        mode="bilinear",
        align_corners=False,
        antialias=side < trained,
    )
    return resized.reshape(*maps.shape[:-1], side**2).to(maps.dtype)


def convolve_doubled(maps: Tensor, convolution: nn.Conv2d) -> Tensor:
    """A 3x3 `convolution` of `maps` (N, c, h, w) doubled by nearest upsampling: (N, o, 2h, 2w), without doubling them.

    Exactly a transposed convolution of stride 2, whose 4x4 kernel is the 3x3 one turned round and summed over the two
    copies of each pixel: 4/9 of the multiplications, and under half of the time of 64 channels on a CPU.
    """
    kernel = doubling_kernel(convolution)
    return F.conv_transpose2d(maps, kernel.transpose(0, 1), convolution.bias, stride=2, padding=1)


def doubling_kernel(convolution: nn.Conv2d) -> Tensor:
    """(o, c, 4, 4): the sums of the weights that meet copies of one pixel."""
    return 4 * F.avg_pool2d(convolution.weight.flip(2, 3), 2, stride=1, padding=1)
