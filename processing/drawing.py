"""Images of answers, in the manner of Figs. 7 to 10, one call each.

Masks: overlay, overlay_masks, outline, cut_out. Probabilities: heat_map. A_mut, word by word: attention_sheet. Any of
these beside each other, with texts: contact_sheet. Each image is turned as its EXIF orientation says, because the
processor and the pipeline turn it too. Heat maps and attention need Matplotlib, which is imported when they are drawn.
"""

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps

PREDICTION_COLOR = "#00c8ff"  # on no shape of the scenes, and rare in photographs
TARGET_COLOR = "#2fbf4f"
TEXT_COLOR = "#303030"
# Okabe and Ito's colors, which color-blind people tell apart too.
MASK_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#f0e442", "#000000")
HEAT_COLORS = "inferno"  # of Matplotlib: from 0 to 1 ever lighter
DPI = 72  # pixels in an inch: so many points are an inch too, so Matplotlib's sizes of letters are pixels

Color = str | tuple[int, int, int]  # any name ImageColor knows, or RGB from 0 to 255
Cell = Image.Image | str | tuple[Image.Image, str]  # an image, a text, or an image with a caption below it


def overlay(image: Image.Image, mask, color: Color = PREDICTION_COLOR, opacity: float = 0.45) -> Image.Image:
    """Tint the pixels of `mask` and draw its edge.

    Args:
        image: of any mode, (w, h).
        mask: (h, w) bool or integers, non-zero on the object; a PIL "L" or "1" image will do.
        color: of the tint.
        opacity: from 0.0, the image alone, to 1.0, the color alone.

    Returns:
        A new RGB image, (w, h).

    Raises:
        ValueError: the mask is not binary or not of the image's size, or opacity is outside of 0 and 1.
    """
    return outline(_tinted(_upright(image), mask, color, opacity), mask, color, width=1)


def overlay_masks(
    image: Image.Image, masks: Sequence, colors: Sequence[Color] = MASK_COLORS, opacity: float = 0.45
) -> Image.Image:
    """Draw several masks on one image, each in its own color: different targets in the same image, as in Fig. 9.

    Args:
        image: of any mode, (w, h).
        masks: as `overlay` takes them. Where two overlap, their tints mix, and every edge stays visible.
        colors: one per mask, or more.
        opacity: of the tints.

    Returns a new RGB image, (w, h). Raises a ValueError where there are more masks than colors, and those of `overlay`.
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
    core = mask = _mask_of(image, mask)
    pixels = np.array(image)
    for _ in range(width):
        core = ~_grown(~core, edge=True)
    dark = _grown(mask, edge=False) & ~mask
    pixels[dark] = pixels[dark] // 3
    pixels[mask & ~core] = ImageColor.getrgb(color)[:3] if isinstance(color, str) else color
    return Image.fromarray(pixels)


def cut_out(image: Image.Image, mask) -> Image.Image:
    """The object alone: opaque inside `mask`, transparent and black outside, where nothing of the image is left.

    Args and errors are those of `overlay`. Returns a new RGBA image, (w, h), with an alpha of 255 inside and 0 outside.
    """
    image = _upright(image)
    mask = _mask_of(image, mask)[..., None]
    return Image.fromarray(np.concatenate([np.asarray(image) * mask, mask.astype(np.uint8) * 255], axis=-1))


def heat_map(image: Image.Image, probability, opacity: float = 0.6, with_bar: bool = True) -> Image.Image:
    """Lay probabilities over the image in gray, dark for 0 and light for 1: the same scale in every image.

    Args:
        image: of any mode, (w, h).
        probability: (h, w) floats from 0 to 1, such as the sigmoid of logits at the image's size.
        opacity: from 0.0, the image alone, to 1.0, the colors alone.
        with_bar: whether a bar that says which color is 0, 0.5 and 1 stands below.

    Returns:
        A new RGB image, (w, h), or with the bar higher, and at least 120 wide.

    Raises:
        ValueError: the probabilities are not of the image's size, or they or opacity are not from 0 to 1.
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
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

    width, height = max(120, image.width), image.height + 36
    figure = Figure((width / DPI, height / DPI), dpi=DPI)
    figure.figimage(drawn, yo=36)
    axes = figure.add_axes((0, 20 / height, 1, 10 / height))
    bar = figure.colorbar(ScalarMappable(cmap=HEAT_COLORS), axes, orientation="horizontal")
    bar.set_ticks([0, 0.5, 1], labels=["0", "0.5", "1"])
    bar.outline.set_visible(False)
    for label, alignment in zip(axes.get_xticklabels(), ("left", "center", "right"), strict=True):
        label.set(size=12, color=TEXT_COLOR, horizontalalignment=alignment)
    return _rendered(figure)


def attention_sheet(image: Image.Image, scores, words: Sequence[str], cell_width: int = 140) -> Image.Image:
    """What each word looks at: a row per word, a map per decoder layer, and the layers' mean (Eq. 2a's softmax).

    Each map is scaled to its own largest share, which stands below it. Spread evenly, every share would be 100% / P.

    Args:
        image: of any mode. Stretched to its shape, the grid must cover it.
        scores: A_mut, the model's `mutual_attentions` for one expression: (T, P) floats before any softmax, or one
            such for each layer, (layers, T, P). P is a square number, a grid row by row.
        words: T of them; leave out padding here and in `scores`.
        cell_width: of a map, in pixels.

    Returns a new RGB image. Raises a ValueError where P is no square, there are not T words or a score is not finite.
    """
    image, scores = _upright(image), np.asarray(scores, dtype=np.float64)
    shares = scores[None] if scores.ndim == 2 else scores  # of each layer
    side = math.isqrt(shares.shape[-1])
    if shares.ndim != 3 or side**2 != shares.shape[2] or len(words) != shares.shape[1] or not len(words):
        raise ValueError(
            f"Attention to draw is (T, P) for T words and a square grid of P pixels, or such for each layer, but it is "
            f"{scores.shape} and there are {len(words)} words. Give one expression's mutual_attentions, without its "
            "padding."
        )
    if not np.isfinite(scores).all():
        raise ValueError("Attention is drawn from finite scores, but some are not. The weights may have diverged.")
    shares = np.exp(shares - shares.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)  # (layers, T, P), those of a word sum to 1
    titles = [f"layer {number}" for number in range(1, len(shares) + 1)]
    if len(shares) > 1:
        shares, titles = np.concatenate([shares, shares.mean(axis=0, keepdims=True)]), [*titles, "mean"]
    from matplotlib.figure import Figure

    height = min(2 * cell_width, max(1, round(cell_width * image.height / image.width)))
    image = image.resize((cell_width, height), Image.Resampling.LANCZOS)
    lefts, tops = (cell_width + 10) * np.arange(len(titles)), (height + 24) * np.arange(len(words))
    maps = Image.new("RGB", (int(lefts[-1]) + cell_width, int(tops[-1]) + height), "white")
    figure = Figure((maps.width / DPI, maps.height / DPI), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    for row, column in np.ndindex(len(words), len(titles)):
        look, left, top = shares[column, row], int(lefts[column]), int(tops[row])
        grid = Image.fromarray((look / look.max()).astype(np.float32).reshape(side, side))
        values = np.asarray(grid.resize(image.size, Image.Resampling.BILINEAR)).clip(0, 1)
        maps.paste(_heated(image, values, 0.6), (left, top))
        below = {"x": left + cell_width / 2, "y": top + height + 4, "ha": "center", "va": "top"}
        axes.text(s=f"most {look.max():.1%}", size=13, color=TEXT_COLOR, **below)
    axes.imshow(maps, extent=(0, maps.width, maps.height, 0))
    axes.set_xticks(lefts + cell_width / 2, titles)
    axes.set_yticks(tops + height / 2, map(_printable, words), parse_math=False)
    axes.tick_params(length=0, labelsize=15, labelcolor=TEXT_COLOR, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    axes.set_title(f"attention spread evenly: {1 / side**2:.1%}", size=13, color=TEXT_COLOR, pad=12)
    return _rendered(figure, bbox_inches="tight", pad_inches=10 / DPI)


def contact_sheet(
    rows: Sequence[Sequence[Cell]], titles: Sequence[str] = (), cell_width: int = 240, font_size: int = 15
) -> Image.Image:
    """Lay out rows of images and texts on white.

    contact_sheet([[image, "the red mug", (overlay(image, mask), "IoU 0.83"), outline(image, truth)]],
                  titles=["image", "expression", "prediction", "truth"])

    Args:
        rows: of cells: an image, a text, or an image with a caption. Images are scaled to the cell's width (very
            high ones to twice that in height). Long texts are wrapped, and cut with "..." after twelve lines.
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
        for column, (cell, image) in enumerate(zip(row, cells, strict=True)):
            down = (height - image.height) // 2 if isinstance(cell, str) else 0
            sheet.paste(image, (gap + column * (cell_width + gap), y + down))
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
    """The image in gray under the colors of `values`, (h, w) from 0 to 1."""
    from matplotlib import colormaps

    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity is a share from 0 to 1, but it is {opacity}. 0.6 is the usual.")
    colors = Image.fromarray(colormaps[HEAT_COLORS](values, bytes=True)[..., :3])
    return Image.blend(image.convert("L").convert("RGB"), colors, opacity)


def _rendered(figure, **saving) -> Image.Image:
    """A Matplotlib figure as an RGB image."""
    file = io.BytesIO()
    figure.savefig(file, format="png", pil_kwargs={"compress_level": 1}, **saving)
    return Image.open(file).convert("RGB")


def _grown(mask: np.ndarray, edge: bool) -> np.ndarray:
    """`mask` and its eight neighbours; beyond the image lies `edge`."""
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
    image, caption = cell if isinstance(cell, tuple) else (cell, "")
    scale = min(width / image.width, 2 * width / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    below = _drawn(caption, width, font) if caption else Image.new("RGB", (width, 0))
    gap = font.size // 3 if caption else 0
    drawn = Image.new("RGB", (width, image.height + gap + below.height), "white")
    drawn.paste(image, ((width - image.width) // 2, 0))
    drawn.paste(below, (0, image.height + gap))
    return drawn


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _wrapped(text: str, width: int, font: ImageFont.FreeTypeFont) -> list[str]:
    """At most twelve lines of as many letters as fit into `width` pixels; "..." ends a text that is cut."""
    text = _printable(text)[:4000]
    for letters in range(max(4, width // 3), 3, -1):
        lines = textwrap.wrap(text, letters, max_lines=12, placeholder="...")
        if all(font.getlength(line) <= width for line in lines):
            break
    return lines or [""]
