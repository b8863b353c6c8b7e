"""Mask Decoder: § III-D, Fig. 6, and the rows of Table III."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .grids import resize_maps
from .multi_head_attention import MultiHeadAttention
from .word_batch_norm import keep_frozen_statistics


class MaskDecoder(nn.Module):
    """What the words have become is laid over the pixels, and four convolutions draw the mask.

    Channel t of the first convolution belongs to word t. `M3DecConfig` explains the arguments, but for:

    Args:
        num_pixels: P of the grid that "decoder_only" is made for.
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
        self.one_by_one = False  # by fuse_mask_decoder
        self.self_attention = MultiHeadAttention(hidden_size, num_heads)
        self.self_attention_norm = nn.LayerNorm(hidden_size)
        if variant == "decoder_only":
            self.word_maps = nn.Linear(hidden_size, num_pixels)  # bare, as the 1x1 convolution it stands for (ours)
        first = 2 * hidden_size if variant == "concatenated" else max_words
        kinds = [nn.Conv2d] * (4 - num_upsamplings) + [DoubledConvolution] * num_upsamplings
        self.convolutions = nn.ModuleList(
            kind(inputs, channels, 3, padding=1, bias=False)
            for kind, inputs in zip(kinds[:3], (first, channels, channels), strict=True)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        # The last convolution has neither BN nor ReLU, else no logit could be negative.
        self.last_convolution = kinds[3](channels, 1, 3, padding=1)

    def train(self, mode: bool = True) -> "MaskDecoder":
        """Like `nn.Module.train`, but batch norms that are frozen keep their statistics."""
        super().train(mode)
        keep_frozen_statistics(self)
        return self

    def forward(self, decoded: Tensor, pixels: Tensor, word_mask: Tensor, eager: bool = False) -> Tensor:
        """From F_dec (N, T, C) and F_enc (N, P, C) to logits (N, h, w). `word_mask` (N, T) is False on padding."""
        attended, _ = self.self_attention(decoded, decoded, decoded, word_mask, eager)
        kernels = self.self_attention_norm(decoded + attended)
        kernels = kernels.masked_fill(~word_mask[..., None], 0.0)  # (N, T, C), padding silenced after bias and norm

        maps = self.lay_over_pixels(kernels, pixels, word_mask)
        if self.one_by_one and maps.device.type == "cpu":  # a cache holds the maps of one expression, not of eight
            return torch.cat([self.draw(one) for one in maps.split(1)])
        return self.draw(maps)

    def draw(self, maps: Tensor) -> Tensor:
        """The four convolutions: from what `lay_over_pixels` gives to logits (N, h, w)."""
        layers = zip([*self.convolutions, self.last_convolution], [*self.norms, None], strict=True)
        for number, (convolution, norm) in enumerate(layers):
            doubles = number > self.upsample_from
            if doubles and isinstance(convolution, DoubledConvolution):
                maps = convolution(maps, doubled=False)  # the doubled map is not made
            else:  # an adapter around the convolution reads the doubled map, too
                maps = convolution(F.interpolate(maps, scale_factor=2.0) if doubles else maps)  # nearest (ours, as VLT)
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
            maps = resize_maps(self.word_maps(kernels), side)  # nothing sums over them
            maps = maps.masked_fill(~word_mask[..., None], 0.0)
        return F.pad(maps, (0, 0, 0, self.max_words - num_words)).unflatten(-1, (side, side))

    def set_num_pixels(self, num_pixels: int) -> None:
        """Make VLT's maps ones of another grid, where they are what `forward` made of them there before."""
        if self.variant == "decoder_only":
            side, layer = math.isqrt(num_pixels), self.word_maps
            layer.weight = nn.Parameter(resize_maps(layer.weight.detach().mT, side).mT.contiguous())
            layer.bias = nn.Parameter(resize_maps(layer.bias.detach(), side))
            layer.out_features = num_pixels


class DoubledConvolution(nn.Conv2d):
    """A 3x3 convolution of a map that nearest upsampling has doubled. It reads one of the four copies of each pixel.

    Exactly a transposed convolution of stride 2, whose 4x4 kernel is the 3x3 one turned round and summed over the two
    copies of each pixel: 4/9 of the multiplications, and under half of the time of 64 channels on a CPU.
    """

    def forward(self, maps: Tensor, doubled: bool = True) -> Tensor:
        """To (N, o, 2h, 2w), from maps (N, c, 2h, 2w), equal in each square of two, or (N, c, h, w) not `doubled`."""
        if self.kernel_size != (3, 3):
            return super().forward(maps)  # PEFT makes both layers of its adapter of this class, one of them 1x1
        if doubled:
            maps = maps[..., ::2, ::2].clone()  # so that a training step keeps a quarter
        return F.conv_transpose2d(maps, doubling_kernel(self.weight), self.bias, stride=2, padding=1)


def doubling_kernel(weight: Tensor) -> Tensor:
    """(c, o, 4, 4) of a 3x3 convolution's weight (o, c, 3, 3): the sums of the weights that meet copies of a pixel."""
    return (4 * F.avg_pool2d(weight.flip(2, 3), 2, stride=1, padding=1)).transpose(0, 1)
