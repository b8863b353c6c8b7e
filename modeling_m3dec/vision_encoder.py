"""From pixels to F_enc: § III, Fig. 2 (left): backbone levels, one map, transformer encoder. No language enters."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoBackbone, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from .multi_head_attention import FeedForward, MultiHeadAttention
from .positions import sine_positions_2d
from .word_batch_norm import keep_frozen_statistics

STRIDES = (8, 16, 32)


class VisionEncoder(nn.Module):
    """A backbone's three levels fused to one map of `feature_stride`: F_vis. `M3DecConfig` explains the arguments.

    Where `freeze` is set, the backbone gets no gradient and its batch norms stay in eval.
    """

    def __init__(
        self,
        backbone_config: PreTrainedConfig,
        hidden_size: int,
        feature_stride: int = 16,
        freeze: bool = False,
        leaky_relu_slope: float | None = None,
    ):
        super().__init__()
        self.feature_stride = feature_stride
        self.freeze = freeze
        self.backbone = AutoBackbone.from_config(backbone_config, dtype=torch.get_default_dtype())
        if len(self.backbone.channels) != 3:
            raise ValueError(
                "The backbone must give three levels, of strides 8, 16 and 32, but backbone_config gives "
                f"{len(self.backbone.channels)}. Choose them by out_indices (timm) or out_features."
            )
        if hasattr(self.backbone, "swin"):
            self.backbone.swin.layernorm = nn.Identity()  # no level passes through it, so it could never be trained
        for module in self.backbone.modules():
            if isinstance(module, nn.LeakyReLU) and leaky_relu_slope is not None:
                module.negative_slope = leaky_relu_slope
        self.fusion = nn.Conv2d(sum(self.backbone.channels), hidden_size, 1, bias=False)
        self.fusion_norm = nn.BatchNorm2d(hidden_size)
        self.freeze_parameters()

    def freeze_parameters(self) -> None:
        """Take the gradient from what the settings freeze: here, and again after loading."""
        if self.freeze:
            self.backbone.requires_grad_(False)

    def train(self, mode: bool = True) -> "VisionEncoder":
        """Like `nn.Module.train`, but a frozen backbone stays in eval, and so do batch norms that are frozen."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        keep_frozen_statistics(self)
        return self

    def forward(self, pixel_values: Tensor) -> Tensor:
        """From normalized `pixel_values` (B, 3, S, S) to F_vis (B, P, C).

        Raises:
            ValueError: the backbone's levels have other strides.
        """
        # Nothing reads the backbone's attentions, and timm's backbones refuse to give them, whatever their config asks.
        levels = self.backbone(pixel_values.to(self.backbone.dtype), output_attentions=False).feature_maps
        channels = self.backbone.channels
        levels = [x if x.shape[1] == c else x.movedim(-1, 1) for x, c in zip(levels, channels, strict=True)]  # Swin's
        strides = [pixel_values.shape[-1] // level.shape[-1] for level in levels]
        if strides != list(STRIDES):
            raise ValueError(
                f"The backbone's levels must have strides 8, 16 and 32, but they have {strides}. Choose others by "
                "out_indices (timm) or out_features in backbone_config."
            )
        maps = [to_stride(level, stride, self.feature_stride) for level, stride in zip(levels, STRIDES, strict=True)]
        fused = self.fusion_norm(self.fusion(torch.cat(maps, dim=1))).relu()  # (B, C, g, g)
        return fused.flatten(2).mT  # (B, P, C)  F_vis


class TransformerEncoderLayer(GradientCheckpointingLayer):
    """Pixels look at each other: the ordinary post-norm layer, with 2-D sine positions on queries and keys (ours)."""

    def __init__(self, hidden_size: int, num_heads: int, ffn_dim: int, dropout: float = 0.0):
        super().__init__()
        self.self_attention = MultiHeadAttention(hidden_size, num_heads, dropout)
        self.self_attention_norm = nn.LayerNorm(hidden_size)
        self.feed_forward = FeedForward(hidden_size, ffn_dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, pixels: Tensor, eager: bool = False) -> tuple[Tensor, Tensor | None]:
        """From (B, P, C) to (B, P, C), and the attention weights (B, heads, P, P), which are None unless `eager`."""
        side = math.isqrt(pixels.shape[1])
        placed = pixels + sine_positions_2d(side, pixels.shape[2], pixels.device).to(pixels.dtype)
        attended, weights = self.self_attention(placed, placed, pixels, None, eager)
        pixels = self.self_attention_norm(pixels + self.dropout(attended))
        return self.feed_forward_norm(pixels + self.dropout(self.feed_forward(pixels))), weights


def to_stride(level: Tensor, stride: int, target: int) -> Tensor:
    """A map (B, c, h, w) brought from `stride` to `target`: averaged down, left alone, or interpolated up."""
    if stride < target:
        return F.avg_pool2d(level, target // stride)
    if stride == target:
        return level
    return F.interpolate(level, scale_factor=float(stride // target), mode="bilinear", align_corners=False)
