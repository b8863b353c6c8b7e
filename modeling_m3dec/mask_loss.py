"""The mask half of the loss: § III-D, Eq. 5's L_mask, and a Dice loss beside it (ours)."""

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # a label that counts in no loss: torch's own. 255 means the object in many masks of bytes


def masks_at(labels: Tensor, logits: Tensor) -> Tensor:
    """`labels` (N, H, W) at the size of `logits` (N, h, w), in their dtype: 1 where at least half a cell is object.

    Of a cell, what is not `IGNORED` counts; where nothing of it does, it is `IGNORED` itself.
    """

    def share(pixels: Tensor) -> Tensor:
        return F.interpolate(pixels[:, None].float(), size=logits.shape[-2:], mode="area").squeeze(1)

    covered, counted = share(labels == 1), share(labels != IGNORED)
    return (covered >= 0.5 * counted).to(logits.dtype).masked_fill(counted == 0, IGNORED)


def mask_loss(logits: Tensor, target: Tensor) -> Tensor:
    """L_mask of Eq. 5: the binary cross entropy, a mean over all pixels whose target (N, h, w) is not `IGNORED`."""
    counted = target != IGNORED
    loss = F.binary_cross_entropy_with_logits(logits, target, weight=counted.to(logits.dtype))
    return _over_counted(loss, counted)


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """One minus the soft Dice coefficient of each expression, averaged. Ours; off in the paper's recipes.

    The target covers few pixels, so BCE's gradient is small at first: in a trial 0.1 of this beside it raised the mIoU
    after 200 steps from .05 to .33. Where no object is meant, Dice is 1 whatever large area is marked, and has no
    gradient. There it is the BCE of what is marked, each pixel weighing as much as its probability. Where all is
    `IGNORED`, an expression is left out.
    """
    counted = target != IGNORED
    probability, target = logits.sigmoid() * counted, target * counted
    marked, area = probability.sum(dim=(1, 2)), target.sum(dim=(1, 2))
    dice = 1 - (2 * (probability * target).sum(dim=(1, 2)) + 1) / (marked + area + 1)
    weight = probability.detach()
    empty = (weight * F.softplus(logits)).sum(dim=(1, 2)) / (weight.sum(dim=(1, 2)) + 1)
    return _over_counted(torch.where(area > 0, dice, empty).mean(), counted.any(dim=(1, 2)))


def _over_counted(mean: Tensor, counted: Tensor) -> Tensor:
    """A mean over all entries, of which those not `counted` are 0, as one over the others: to the bit where all are."""
    return mean * (counted.numel() / counted.sum().clamp(min=1).to(mean.dtype))
