"""Pictures of answers, in the manner of Figs. 7 to 10, one call each. PIL and NumPy only.

Masks: overlay, overlay_masks, outline, cut_out. Probabilities: heat_map. A_mut, word by word: attention_sheet. Any of
these beside each other, with texts: contact_sheet. A picture is drawn as it is displayed, turned as its EXIF
orientation says, for so the processor and the pipeline read it.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

PREDICTION_COLOR = "#00c8ff"  # on no shape of the scenes, and rare in photographs
TARGET_COLOR = "#2fbf4f"
TEXT_COLOR = "#303030"
# Okabe and Ito's colours, which the colour-blind tell apart too.
MASK_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
HEAT_COLORS = ("#000004", "#420a68", "#932667", "#dd513a", "#fca50a", "#fcffa4")  # "inferno", from 0 to 1: ever lighter

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
    return outline(_tinted(_upright(image), mask, color, opacity), mask, color, width=1)


def overlay_masks(
    image: Image.Image, masks: Sequence, colors: Sequence[Color] = MASK_COLORS, opacity: float = 0.45
) -> Image.Image:
    """Draw several masks on one picture, each in its own color: different targets in the same image, as in Fig. 9.

    Args:
        image: of any mode, (w, h).
        masks: as `overlay` takes them. Where two overlap, their tints mix, and every edge stays visible.
        colors: one per mask, or more.
        opacity: of the tints.

    Returns:
        A new RGB image, (w, h).

    Raises:
        ValueError: there are more masks than colors, or what `overlay` refuses.
    """
    if len(masks) > len(colors):
        raise ValueError(
            f"Each mask has a color of its own, but got {len(masks)} masks and {len(colors)} colors. Draw fewer at "
            "once, or give colors=[…]."
        )
    drawn = _upright(image)
    for mask, color in zip(masks, colors, strict=False):
        drawn = _tinted(drawn, mask, color, opacity)
    for mask, color in zip(masks, colors, strict=False):
        drawn = outline(drawn, mask, color, width=1)
    return drawn


def outline(image: Image.Image, mask, color: Color = TARGET_COLOR, width: int = 2) -> Image.Image:
    """Draw the edge of `mask`, `width` pixels of it inside, on a dark line outside that shows it on any background.

    Args and errors are those of `overlay`. Returns a new RGB image, (w, h).
    """
    image = _upright(image)
    mask = _mask_of(image, mask)
    pixels = np.array(image)
    core = mask
    for _ in range(width):
        core = ~_grown(~core, edge=True)
    dark = _grown(mask, edge=False) & ~mask
    pixels[dark] = pixels[dark] // 3
    pixels[mask & ~core] = ImageColor.getrgb(color)[:3] if isinstance(color, str) else color
    return Image.fromarray(pixels)


def cut_out(image: Image.Image, mask) -> Image.Image:
    """The object alone: opaque inside `mask`, transparent and black outside, where nothing of the picture is left.

    Args:
        image: of any mode, (w, h).
        mask: as `overlay` takes it.

    Returns:
        A new RGBA image, (w, h), whose alpha is 255 inside the mask and 0 outside.

    Raises:
        ValueError: the mask is not binary or not of the image's size.
    """
    image = _upright(image)
    mask = _mask_of(image, mask)[..., None]
    pixels = np.asarray(image)
    return Image.fromarray(np.concatenate([pixels * mask, mask.astype(np.uint8) * 255], axis=-1))


def heat_map(image: Image.Image, probability, opacity: float = 0.6, with_bar: bool = True) -> Image.Image:
    """Lay probabilities over the picture in grey, dark for 0 and light for 1: the same scale in every picture.

    Args:
        image: of any mode, (w, h).
        probability: (h, w) floats from 0 to 1, such as the sigmoid of logits at the image's size.
        opacity: from 0.0, the picture alone, to 1.0, the colors alone.
        with_bar: whether a bar that says which color is 0, 0.5 and 1 stands below.

    Returns:
        A new RGB image, (w, h), or with the bar higher, and at least 120 wide.

    Raises:
        ValueError: the probabilities are not of the image's size or not all from 0 to 1, or opacity is not.
    """
    image, values = _upright(image), np.asarray(probability)
    if values.shape != (image.height, image.width) or values.dtype.kind != "f":
        raise ValueError(
            f"Probabilities to draw are floats (h, w) = {(image.height, image.width)} as the image is, but they are "
            f"{values.dtype} {values.shape}. Interpolate the logits to the image's size, then take their sigmoid."
        )
    if not (values.min() >= 0 and values.max() <= 1):  # NaN is neither
        raise ValueError(
            f"Probabilities are numbers from 0 to 1, but these reach from {values.min()} to {values.max()}. Give "
            "the sigmoid of the logits; where those are NaN, the weights have diverged."
        )
    drawn = _heated(image, values, opacity)
    if not with_bar:
        return drawn
    bar = _color_bar(max(120, image.width))
    sheet = Image.new("RGB", (bar.width, image.height + bar.height), "white")
    sheet.paste(drawn, (0, 0))
    sheet.paste(bar, (0, image.height))
    return sheet


def attention_sheet(image: Image.Image, scores, words: Sequence[str], cell_width: int = 140) -> Image.Image:
    """What each word looks at: a row per word, a map per decoder layer, and the layers' mean (Eq. 2a's softmax).

    Each map is scaled to its own largest share, which its caption says, beside that of an even look: 100% / P.

    Args:
        image: of any mode. Stretched to its shape, the grid must cover it.
        scores: A_mut, the model's `mutual_attentions` for one expression: (T, P) floats before any softmax, or one
            such for each layer, (layers, T, P). P is a square number, a grid row by row.
        words: T of them; leave out padding here and in `scores`.
        cell_width: of a map, in pixels.

    Returns:
        A new RGB image.

    Raises:
        ValueError: P is no square, there are not T words, or a score is not finite.
    """
    image = _upright(image)
    layers = [np.asarray(layer, dtype=np.float64) for layer in (scores if np.ndim(scores) == 3 else [scores])]
    shape = layers[0].shape
    side = math.isqrt(shape[-1])
    if len(shape) != 2 or side**2 != shape[1] or len(words) != shape[0] or not len(words):
        raise ValueError(
            f"Attention to draw is (T, P) for T words and a square grid of P pixels, but it is {shape} and there are "
            f"{len(words)} words. Give one expression's mutual_attentions, without its padding."
        )
    if not np.isfinite(layers).all():
        raise ValueError("Attention is drawn from finite scores, but some are not. The weights may have diverged.")
    powers = [np.exp(layer - layer.max(axis=1, keepdims=True)) for layer in layers]
    looks = [power / power.sum(axis=1, keepdims=True) for power in powers]  # (T, P) each, a word's shares sum to 1
    titles = [f"word (even: {1 / shape[1]:.1%})", *(f"layer {number}" for number in range(1, len(looks) + 1))]
    if len(looks) > 1:
        looks, titles = [*looks, np.mean(looks, axis=0)], [*titles, "mean"]
    height = min(2 * cell_width, max(1, round(cell_width * image.height / image.width)))
    small = image.resize((cell_width, height), Image.Resampling.LANCZOS)
    rows = []
    for number, word in enumerate(words):
        row = [word]
        for look in looks:
            most = look[number].max()
            grid = Image.fromarray((look[number] / most).astype(np.float32).reshape(side, side))
            shares = np.asarray(grid.resize(small.size, Image.Resampling.BILINEAR)).clip(0, 1)
            row.append((_heated(small, shares, 0.6), f"most {most:.1%}"))
        rows.append(row)
    return contact_sheet(rows, titles, cell_width)


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


def _tinted(image: Image.Image, mask, color: Color, opacity: float) -> Image.Image:
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is a share from 0 to 1, but it is {opacity}. 0.45 is the usual.")
    inside = Image.fromarray(_mask_of(image, mask).astype(np.uint8) * round(255 * opacity))
    return Image.composite(Image.new("RGB", image.size, color), image, inside)


def _upright(image: Image.Image) -> Image.Image:
    return ImageOps.exif_transpose(image).convert("RGB")


def _mask_of(image: Image.Image, mask) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != (image.height, image.width) or mask.dtype.kind not in "bui":
        raise ValueError(
            f"A mask to draw is bool or integers (h, w) = {(image.height, image.width)} as the image is, but it is "
            f"{mask.dtype} {mask.shape}. Post-process with target_sizes=[(h, w)], and compare probabilities with 0.5."
        )
    return mask != 0


def _heated(image: Image.Image, values: np.ndarray, opacity: float) -> Image.Image:
    """The picture in grey under the colors of `values`, (h, w) from 0 to 1."""
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is a share from 0 to 1, but it is {opacity}. 0.6 is the usual.")
    return Image.blend(image.convert("RGB").convert("L").convert("RGB"), Image.fromarray(_heat(values)), opacity)


def _heat(values: np.ndarray) -> np.ndarray:
    """Colors (…, 3) uint8 for `values` (…) from 0 to 1."""
    stops = np.array([ImageColor.getrgb(color) for color in HEAT_COLORS])
    places = np.linspace(0, 1, len(stops))
    return np.stack([np.interp(values, places, channel) for channel in stops.T], axis=-1).round().astype(np.uint8)


def _color_bar(width: int) -> Image.Image:
    """The scale of `heat_map`, with its ends and its middle named below."""
    font, thick, edge = _font(12), 10, 6
    bar = Image.new("RGB", (width, edge + thick + 20), "white")
    colors = np.repeat(_heat(np.linspace(0, 1, width))[None], thick, axis=0)
    bar.paste(Image.fromarray(colors), (0, edge))
    pen = ImageDraw.Draw(bar)
    for text, place, anchor in (("0", 0, "lt"), ("0.5", width // 2, "mt"), ("1", width, "rt")):
        pen.text((place, edge + thick + 4), text, fill=TEXT_COLOR, font=font, anchor=anchor)
    return bar


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
