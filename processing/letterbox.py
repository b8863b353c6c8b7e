"""The letterbox: an image at its own proportions in the middle of a square, and the way back (VLT, CRIS)."""

import torch
import torch.nn.functional as F
from transformers.image_processing_utils import get_size_dict

GRAY = 128  # of 255, a letterbox's border before normalization: VLT's 0.5, rounded to what a pixel can hold


def letterbox_box(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where an image lies on its letterbox: the only place that says so, for both backends and for post-processing.

    The image is scaled by r = min(size[0] / height, size[1] / width), its sides are rounded to whole pixels, at least
    one, and it is centred; an odd pixel of border goes to the bottom or to the right.

    Args:
        height, width: of the image.
        size: (height, width) of the canvas, S and S.

    Returns:
        (top, left, new_height, new_width), in pixels of the canvas.
    """
    canvas_height, canvas_width = size
    if height * canvas_width >= width * canvas_height:  # as high as the canvas
        new_height, new_width = canvas_height, max(1, round(width * canvas_height / height))
    else:
        new_height, new_width = max(1, round(height * canvas_width / width)), canvas_width
    return (canvas_height - new_height) // 2, (canvas_width - new_width) // 2, new_height, new_width


def letterbox_size(image_processor) -> tuple[int, int]:
    """The (height, width) of the canvas of an image processor that letterboxes.

    Raises:
        ValueError: its `size` does not say both.
    """
    size = get_size_dict(image_processor.size)
    if set(size) != {"height", "width"}:
        raise ValueError(
            f"A letterbox needs a size of height and width, but the image processor's size is {dict(size)}. Use "
            "size={'height': 416, 'width': 416}, or do_letterbox=False."
        )
    return size["height"], size["width"]


def inside_letterbox(logit: torch.Tensor, height: int, width: int, size: tuple[int, int]) -> torch.Tensor:
    """The part of `logit` (h, w) that is about the image, at the scale the network saw it: (new_height, new_width).

    A row or column that holds nothing but border is replaced by the nearest that does hold a part of the image:
    interpolation would otherwise mix it into the image's edge.

    Args:
        logit: over the whole letterbox, at any resolution.
        height, width: of the image.
        size: (height, width) of the letterbox.
    """
    top, left, new_height, new_width = letterbox_box(height, width, size)
    rows = cells_of_image(top, new_height, size[0], logit.shape[0])
    columns = cells_of_image(left, new_width, size[1], logit.shape[1])
    logit = logit[rows][:, columns]  # (h, w)
    canvas = F.interpolate(logit[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    return canvas[top : top + new_height, left : left + new_width]


def cells_of_image(start: int, length: int, side: int, num_cells: int) -> torch.Tensor:
    """Each of `num_cells` along `side` pixels, or else the nearest that touches the `length` pixels from `start` on."""
    first = start * num_cells // side
    last = ((start + length) * num_cells - 1) // side
    return torch.arange(num_cells).clamp(first, last)


def check_frame(image_processor, settings: dict):
    """Refuse the `settings` of a call that post-processing, which only knows `image_processor`, would not undo.

    Raises:
        ValueError: `do_letterbox` is not the processor's own, or `do_center_crop` or `do_pad` is on; or it is a
            letterbox, and `size` is not the processor's own or `do_resize` is off; or it is none, and `size` has no
            height and width; or `image_mean` or `image_std` has values for other channels than three.
    """
    for name in ("image_mean", "image_std"):
        if settings["do_normalize"] and isinstance(settings[name], list | tuple) and len(settings[name]) != 3:
            raise ValueError(
                f"{name} must be one number or three, for red, green and blue, but it is {settings[name]}. A fourth "
                "channel is taken for alpha and laid over white."
            )
    if settings["do_letterbox"] != image_processor.do_letterbox:
        raise ValueError(
            f"do_letterbox cannot change for one call, because post-processing would not know, but it is "
            f"{settings['do_letterbox']} and the image processor's is {image_processor.do_letterbox}. Set "
            "image_processor.do_letterbox, or load the processor with do_letterbox=…."
        )
    for name in ("do_center_crop", "do_pad"):
        if settings[name]:
            raise ValueError(
                f"Images are neither cropped nor padded, because post-processing lays a mask over the whole image, but "
                f"{name} is {settings[name]}. Leave it out, or crop the images before."
            )
    size = dict(settings["size"] or {})
    if not image_processor.do_letterbox:
        if settings["do_resize"] and set(size) != {"height", "width"}:
            raise ValueError(
                "All images are stretched to one size, such as {'height': 416, 'width': 416}, but size is "
                f"{size}. Give a height and a width; to keep proportions, load the processor with do_letterbox=True."
            )
        return
    height, width = letterbox_size(image_processor)
    if size != {"height": height, "width": width} or not settings["do_resize"]:
        raise ValueError(
            f"A letterbox is resized to the image processor's own size, ({height}, {width}), because post-processing "
            f"would not know, but size is {size} and do_resize is {settings['do_resize']}. Leave them out, or set "
            "image_processor.size."
        )
