"""The answer for a large image without a float map of its size, and masks as run lengths."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

SAMPLES = 2**16  # of probabilities that the score of a large mask is the mean of, at least a quarter of it


def interpolate(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Logits (n, h, w) at another size, (n, height, width)."""
    return F.interpolate(logits[:, None], size=(height, width), mode="bilinear", align_corners=False)[:, 0]


def large_answer(logit: torch.Tensor, height: int, width: int, threshold: float, return_scores: bool = True) -> dict:
    """As `post_process_referring_segmentation` answers, from `logit` (h, w), but for few of the pixels one by one.

    The mask is, bit for bit, `interpolate(logit).sigmoid() > threshold`. Between two rows of logits, interpolated in
    width, a column can cross the threshold only where they lie on two sides of it; only there is it interpolated in
    height. Where rounding might decide, the whole column is interpolated as above.
    """
    logit = logit.cpu()
    rows_of_logits = interpolate(logit[None], len(logit), width)[0]  # (h, width)
    table, edge = rows_of_logits.numpy(), math.log(threshold / (1 - threshold))
    place = ((np.arange(height) + 0.5) * (len(table) / height) - 0.5).clip(0, len(table) - 1)
    above = place.astype(int).clip(max=max(0, len(table) - 2))  # for each row of the mask, the row of logits above it
    share = (place - above).astype(np.float32)  # of the row below
    rounding = 2**-22 * (float(np.abs(table).max()) + abs(edge) + 1 / (threshold * (1 - threshold)))
    side = np.where(np.abs(table - edge) > rounding, np.sign(table - edge), 0)  # (h, width)

    mask = (side > 0)[above]  # (height, width), right but for what follows
    crossing = (side[:-1] != side[1:]) | (side[:-1] == 0)
    doubtful = side[-1] == 0  # (width,)
    starts = np.searchsorted(above, np.arange(len(table)))
    for row in np.flatnonzero(crossing.any(axis=1)):
        rows, columns = slice(starts[row], starts[row + 1]), np.flatnonzero(crossing[row])
        upper, step = table[row, columns], table[row + 1, columns] - table[row, columns]
        beyond = upper + share[rows, None] * step - edge
        mask[rows, columns] = beyond > 0
        sure = np.abs(beyond) > rounding + 2**-22 * len(table) * np.abs(step)  # the latter for a place's own rounding
        doubtful[columns] |= ~sure.all(axis=0)
    columns = np.flatnonzero(doubtful)
    if len(columns):
        exact = interpolate(rows_of_logits[None, :, torch.from_numpy(columns)], height, len(columns))[0]
        mask[:, columns] = (exact.sigmoid() > threshold).numpy()

    row, column = divmod(int(logit.argmax()), logit.shape[1])
    peak = int((row + 0.5) * height / len(logit)), int((column + 0.5) * width / logit.shape[1])
    answer = {"mask": mask, "peak": peak}
    if return_scores:
        every = 1 + math.isqrt(np.count_nonzero(mask) // SAMPLES)  # row and column
        inside = mask[::every, ::every]
        rows, columns = (every * place for place in divmod(np.flatnonzero(inside), inside.shape[1]))
        upper, lower = table[above[rows], columns], table[np.minimum(above[rows] + 1, len(table) - 1), columns]
        probability = torch.from_numpy(upper + share[rows] * (lower - upper)).sigmoid()
        answer["score"] = float(probability.mean(dtype=torch.float64)) if len(rows) else 0.0
    return answer


def mask_image(mask: np.ndarray) -> Image.Image:
    """A bool mask as a PIL image of mode "L": 255 on the object and 0 elsewhere."""
    return Image.fromarray(mask.view(np.uint8) * np.uint8(255))


def run_lengths(mask: np.ndarray) -> dict:
    """A bool mask (height, width) as COCO's {"size": [height, width], "counts": compressed run lengths}."""
    height, width = mask.shape
    # Runs go down the columns. They end where a pixel differs from the one above, or from the end of the last column.
    rows, columns = divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)
    tops = np.flatnonzero(mask[0] != np.append(False, mask[-1, :-1]))  # the first run is of zeros, if need be none
    edges = np.sort(np.concatenate([columns * height + rows + 1, tops * height]))
    runs = np.diff(edges, prepend=0, append=mask.size)
    values = runs.copy()
    values[3:] -= runs[1:-2]
    groups = []  # five bits of every value at a time, the lowest first
    left = np.ones(len(values), bool)
    while left.any():
        bits, values = values & 31, values >> 5
        more = values != np.where(bits & 16, -1, 0)  # bit 4 of the last group is the sign
        groups.append(np.where(left, bits + 32 * more + 48, 0))  # bit 5 says that more follow
        left &= more
    characters = np.stack(groups, axis=1).astype(np.uint8).ravel()
    return {"size": [height, width], "counts": characters[characters > 0].tobytes().decode("ascii")}
