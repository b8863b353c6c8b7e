"""Folding for inference: batch norms and upsampling into the convolutions before or after them, once and for good."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .mask_decoder import MaskDecoder, doubling_kernel
from .vision_encoder import VisionEncoder


def fuse_vision_encoder(encoder: VisionEncoder, image_size: int) -> None:
    """Fold batch norms into convolutions: the same features in eval, up to rounding.

    A norm belongs to the convolution listed just before it in the same module, as timm and transformers list them,
    if a run on one image of `image_size` shows that it gets what that one gives. Any other stays as it is.
    """
    made_by, convolution_of = {}, {}  # a convolution's output → it; a norm → what made its input

    def note(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            made_by[output] = layer
        else:
            convolution_of[layer] = made_by.get(inputs[0])

    layers = [module for module in encoder.modules() if isinstance(module, nn.Conv2d | nn.BatchNorm2d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    encoder(encoder.fusion.weight.new_zeros(1, 3, image_size, image_size))
    for hook in hooks:
        hook.remove()
    for module in list(encoder.modules()):
        for (name, layer), (norm_name, norm) in pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv2d) and convolution_of.get(norm) is layer:
                setattr(module, name, fuse_conv_bn_eval(layer, norm))
                setattr(module, norm_name, nn.Sequential(*norm.children()))  # timm's hold their activation


def fuse_mask_decoder(decoder: MaskDecoder) -> None:
    """Fold batch norms and doublings into the convolutions: the same logits in eval, up to rounding."""
    layers = [*map(fuse_conv_bn_eval, decoder.convolutions, decoder.norms), decoder.last_convolution]
    plain = decoder.upsample_from + 1
    *convolutions, decoder.last_convolution = [*layers[:plain], *map(doubling, layers[plain:])]
    decoder.convolutions = nn.ModuleList(convolutions)
    decoder.norms = nn.ModuleList(nn.Identity() for _ in decoder.norms)
    decoder.upsample_from = 3  # none is left to `forward`
    decoder.one_by_one = True


def doubling(convolution: nn.Conv2d) -> nn.Module:
    """The layer that makes of a map what `convolution` makes of it doubled. Its kernel is made once."""
    return (DoublingToOne if convolution.out_channels == 1 else NineProducts)(convolution)


class NineProducts(nn.Module):
    """A 3x3 convolution of a map that nearest upsampling has doubled, by 9 products for each of its pixels, not 36.

    In one dimension: of the two copies of x[i], the convolution by (a, b, c) makes a x[i-1] + (b + c) x[i] and
    (a + b) x[i] + c x[i+1]. With s = a + b + c these are s x[i] + a (x[i-1] - x[i]) and s x[i] + c (x[i+1] - x[i]):
    three products for both. In two dimensions there are nine for the four copies.
    """

    def __init__(self, convolution: nn.Conv2d):
        super().__init__()
        weight = convolution.weight
        for axis in (2, 3):
            a, b, c = weight.unbind(axis)
            weight = torch.stack([-a, a + b + c, c], axis)
        self.weight = nn.Parameter(weight.permute(2, 3, 0, 1).contiguous())  # (3, 3, o, c)
        self.bias = convolution.bias

    def forward(self, maps: Tensor) -> Tensor:
        """From (N, c, h, w) to (N, o, 2h, 2w)."""
        maps = maps.permute(0, 2, 3, 1)
        a, s, c = self.weight
        below = F.pad(maps, (0, 0, 0, 0, 1, 1)).diff(dim=1)  # row i: x[i] - x[i-1], (N, h + 1, w, c)
        beside = columns(maps)  # (N, h, w + 1, c)
        across = columns(below)  # (N, h + 1, w + 1, c)

        # What each pixel itself, its row, its column, and both of these together add to its copies.
        own = pointwise(maps, s[1], self.bias)
        left, right = own + pointwise(beside[:, :, :-1], s[0]), own + pointwise(beside[:, :, 1:], s[2])
        up, down = pointwise(below[:, :-1], a[1]), pointwise(below[:, 1:], c[1])
        doubled = own.new_empty(*own.shape[:2], 2, own.shape[2], 2, own.shape[3])  # rows, 2, columns, 2
        doubled[:, :, 0, :, 0] = pointwise(across[:, :-1, :-1], a[0]).add_(up).add_(left)
        doubled[:, :, 0, :, 1] = pointwise(across[:, :-1, 1:], a[2]).add_(up).add_(right)
        doubled[:, :, 1, :, 0] = pointwise(across[:, 1:, :-1], c[0]).add_(down).add_(left)
        doubled[:, :, 1, :, 1] = pointwise(across[:, 1:, 1:], c[2]).add_(down).add_(right)
        return doubled.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)


class DoublingToOne(nn.ConvTranspose2d):
    """`DoubledConvolution` with one output, as products with the 16 entries of its kernel that are then added up."""

    def __init__(self, convolution: nn.Conv2d):
        super().__init__(convolution.in_channels, 1, 4, 2, 1)
        self.weight = nn.Parameter(doubling_kernel(convolution.weight).contiguous())
        self.bias = convolution.bias

    def forward(self, maps: Tensor) -> Tensor:
        """From (N, c, h, w) to (N, 1, 2h, 2w)."""
        products = pointwise(maps.permute(0, 2, 3, 1), self.weight.flatten(1).mT)  # (N, h, w, 16)
        size = [2 * side for side in maps.shape[-2:]]
        return F.fold(products.flatten(1, 2).mT, size, 4, padding=1, stride=2) + self.bias


def columns(maps: Tensor) -> Tensor:
    """(N, h, w + 1, c): each column of (N, h, w, c) minus that before it, with columns of zeros around the map."""
    return F.pad(maps, (0, 0, 1, 1)).diff(dim=2)


def pointwise(maps: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer: (N, h, w, c) to (N, h, w, o), by a convolution of N h rows, which torch has faster on a CPU."""
    number, height, width, _ = maps.shape
    rows = maps.flatten(0, 1)[:, None].permute(0, 3, 1, 2)  # (N h, c, 1, w)
    return F.conv2d(rows, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(number, height, width, -1)
