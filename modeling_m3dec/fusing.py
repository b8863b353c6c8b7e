"""Folding for inference: batch norms and upsampling into the convolutions before or after them, once and for good."""

from itertools import pairwise

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


def doubling(convolution: nn.Conv2d) -> nn.ConvTranspose2d:
    """The layer that makes of a map what `convolution` makes of it doubled. Its kernel is made once."""
    layer = nn.ConvTranspose2d(convolution.in_channels, convolution.out_channels, 4, 2, 1)
    layer.weight = nn.Parameter(doubling_kernel(convolution.weight).contiguous())
    layer.bias = convolution.bias
    return layer.train(convolution.training)
