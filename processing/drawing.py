"""Pictures of masks: a coloured overlay, an outline, and a sheet of pictures and expressions in rows. PIL only."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

PREDICTION_COLOR = "#00c8ff"  # on no shape of the scenes, and rare in photographs
TARGET_COLOR = "#2fbf4f"
TEXT_COLOR = "#303030"

Color = str | tuple[int, int, int]  # any name ImageColor knows, or RGB from 0 to 255
Cell = Image.Image | str | tuple[Image.Image, str]  # a picture, a text, or a picture with a caption below it


def overlay(image: Image.Image, mask, color: Color = PREDICTION_COLOR, opacity: float = 0.45) -> Image.Image:
    """Tint the pixels of `mask` and draw its edge.

    Args:
        image: of any mode, (w, h).
        mask: (h, w) bool or integers, non-zero on the object; a PIL "L" or "1" image will do.
        color: of the tint.
        opacity: from 0.0, the picture alone, to 1.0, the color alone.

    Returns:
        A new RGB image, (w, h).

    Raises:
        ValueError: the mask is not binary or not of the image's size, or opacity is outside of 0 and 1.
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is a share from 0 to 1, but it is {opacity}. 0.45 is the usual.")
    image, mask = image.convert("RGB"), _mask_of(image, mask)
    tint = Image.new("RGB", image.size, color)
    inside = Image.fromarray(mask.astype(np.uint8) * round(255 * opacity))
    return outline(Image.composite(tint, image, inside), mask, color, width=1)


def outline(image: Image.Image, mask, color: Color = TARGET_COLOR, width: int = 2) -> Image.Image:
    """Draw the edge of `mask`, `width` pixels of it inside, on a dark line outside that shows it on any background.

    Args and errors are those of `overlay`. Returns a new RGB image, (w, h).
    """
    image, mask = image.convert("RGB"), _mask_of(image, mask)
    pixels = np.array(image)
    core = mask
    for _ in range(width):
        core = ~_grown(~core, edge=True)
    dark = _grown(mask, edge=False) & ~mask
    pixels[dark] = pixels[dark] // 3
    pixels[mask & ~core] = ImageColor.getrgb(color)[:3] if isinstance(color, str) else color
    return Image.fromarray(pixels)


def contact_sheet(
    rows: Sequence[Sequence[Cell]], titles: Sequence[str] = (), cell_width: int = 240, font_size: int = 15
) -> Image.Image:
    """Lay out rows of pictures and texts on white.

    contact_sheet([[image, "the red mug", (overlay(image, mask), "IoU 0.83"), outline(image, truth)]],
                  titles=["image", "expression", "prediction", "truth"])

    Args:
        rows: of cells: a picture, a text, or a picture with a caption. Pictures are scaled to the cell's width (very
            high ones to twice that in height); long texts are wrapped, and cut with "..." after twelve lines.
        titles: one per column, or none.
        cell_width: in pixels.
        font_size: in pixels. Letters that the font found lacks show as boxes.

    Raises:
        ValueError: no rows, or rows or titles of unequal length.
    """
    lengths = {len(row) for row in rows} | ({len(titles)} if titles else set())
    if not rows or len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            f"A sheet has one row or more, and rows and titles of one length above 0, but got {len(rows)} rows and "
            f"lengths {sorted(lengths)}. Fill short rows with ''."
        )
    rows = [titles, *rows] if titles else rows
    font, gap = _font(font_size), font_size * 2 // 3
    drawn = [[_drawn(cell, cell_width, font) for cell in row] for row in rows]
    heights = [max(cell.height for cell in row) for row in drawn]
    size = (gap + lengths.pop() * (cell_width + gap), gap + sum(height + gap for height in heights))
    sheet = Image.new("RGB", size, "white")
    y = gap
    for row, cells, height in zip(rows, drawn, heights, strict=True):
        for column, (cell, picture) in enumerate(zip(row, cells, strict=True)):
            down = (height - picture.height) // 2 if isinstance(cell, str) else 0
            sheet.paste(picture, (gap + column * (cell_width + gap), y + down))
        y += height + gap
    return sheet


def _mask_of(image: Image.Image, mask) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != (image.height, image.width) or mask.dtype.kind not in "bui":
        raise ValueError(
            f"A mask to draw is bool or integers (h, w) = {(image.height, image.width)} as the image is, but it is "
            f"{mask.dtype} {mask.shape}. Post-process with target_sizes=[(h, w)], and compare probabilities with 0.5."
        )
    return mask != 0


def _grown(mask: np.ndarray, edge: bool) -> np.ndarray:
    """`mask` and its eight neighbours; beyond the picture lies `edge`."""
    height, width = mask.shape
    padded = np.pad(mask, 1, constant_values=edge)
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


def _font(size: int) -> ImageFont.FreeTypeFont:
    for name in ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf"):  # found among the system's, if it has them
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)  # comes with Pillow, plain English letters only


def _drawn(cell: Cell, width: int, font: ImageFont.FreeTypeFont) -> Image.Image:
    if isinstance(cell, str):
        lines = _wrapped(cell, width, font)
        ascent, descent = font.getmetrics()
        line_height = (ascent + descent) * 6 // 5
        drawn = Image.new("RGB", (width, max(1, line_height * len(lines))), "white")
        pen = ImageDraw.Draw(drawn)
        for number, line in enumerate(lines):
            pen.text((0, number * line_height), line, fill=TEXT_COLOR, font=font)
        return drawn
    picture, caption = cell if isinstance(cell, tuple) else (cell, "")
    scale = min(width / picture.width, 2 * width / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    picture = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    below = _drawn(caption, width, font) if caption else Image.new("RGB", (width, 0))
    gap = font.size // 3 if caption else 0
    drawn = Image.new("RGB", (width, picture.height + gap + below.height), "white")
    drawn.paste(picture, ((width - picture.width) // 2, 0))
    drawn.paste(below, (0, picture.height + gap))
    return drawn


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont, most_lines: int = 12) -> list[str]:
    """Lines no wider than `width` pixels, broken at spaces, or within a word that is wider itself."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)[:4000]
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        if lines[-1]:
            lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    if len(lines) > most_lines:
        lines = lines[:most_lines]
        while lines[-1] and font.getlength(lines[-1] + "...") > width:
            lines[-1] = lines[-1][:-1]
        lines[-1] += "..."
    return lines
