"""Names of colors: which of fourteen names a pixel has, by its distance in CIELAB, and what that says of a thing."""

import functools
from itertools import combinations

import numpy as np

# Several shades may have one name. sRGB, 0 to 255.
REFERENCES = {
    "black": [(0, 0, 0), (28, 28, 30), (40, 38, 40)],
    "white": [(255, 255, 255), (235, 235, 232), (222, 226, 230), (240, 230, 216)],
    "gray": [(128, 128, 128), (90, 90, 92), (165, 165, 168), (110, 116, 122)],
    "red": [(200, 20, 30), (150, 20, 30), (230, 50, 50), (110, 26, 26)],
    "orange": [(240, 130, 20), (220, 110, 30), (250, 160, 60), (225, 85, 25), (195, 80, 30)],
    "yellow": [(245, 215, 40), (230, 200, 80), (255, 235, 110)],
    "green": [(30, 130, 50), (90, 160, 70), (50, 80, 45), (130, 190, 90), (20, 90, 70)],
    "turquoise": [(60, 190, 180), (0, 130, 130), (120, 210, 205)],
    "blue": [
        (30, 70, 180), (60, 110, 200), (25, 35, 90), (100, 150, 220), (70, 95, 130), (40, 55, 85), (180, 200, 228)
    ],
    "purple": [(110, 40, 140), (80, 30, 100), (150, 100, 180)],
    "pink": [(245, 150, 180), (230, 80, 140), (250, 190, 200)],
    "brown": [(110, 65, 35), (80, 50, 30), (140, 90, 55), (95, 75, 55)],
    "beige": [(215, 195, 160), (195, 170, 135), (230, 215, 190)],
}  # fmt: skip
COLORS = tuple(REFERENCES)
SPOKEN = {  # other words for a color
    "gray": ("gray", "grey"),
    "turquoise": ("turquoise", "teal", "cyan"),
    "purple": ("purple", "violet"),
    "beige": ("beige", "tan", "cream"),
}
NEAR = {  # colors that people do not tell apart for sure; a thing of one may be called the other
    frozenset(pair)
    for pair in (
        ("black", "gray"), ("gray", "white"), ("white", "beige"), ("beige", "brown"), ("brown", "black"),
        ("brown", "red"), ("brown", "orange"), ("red", "orange"), ("orange", "yellow"), ("yellow", "green"),
        ("green", "turquoise"), ("turquoise", "blue"), ("blue", "purple"), ("purple", "pink"), ("pink", "red"),
        ("beige", "yellow"), ("beige", "orange"), ("gray", "blue"), ("black", "blue"), ("gray", "beige"),
        ("gray", "brown"), ("beige", "pink"), ("orange", "pink"),
    )
}  # fmt: skip
MOST = 0.55  # of its pixels have the color that a thing is called by
FEW = 0.15  # or less have it: the thing is surely not called so
EACH, TOGETHER = 0.25, 0.75  # of its pixels have each of two colors, and the two together


def color_shares(pixels: np.ndarray) -> np.ndarray:
    """The share of each of COLORS, float64 (number of COLORS,), among `pixels`, uint8 (N, 3) of sRGB."""
    counts = np.bincount(label_pixels(pixels), minlength=len(COLORS)).astype(float)
    return counts / max(counts.sum(), 1.0)


def label_pixels(pixels: np.ndarray) -> np.ndarray:
    """The number of each pixel's color in COLORS, uint8 (…), of sRGB, uint8 (…, 3)."""
    red, green, blue = np.moveaxis((pixels >> 3).astype(np.int32), -1, 0)
    return _table()[(red << 10) + (green << 5) + blue]


def has_color(shares: np.ndarray, color: str) -> bool | None:
    """Whether a thing of these `color_shares` is called by `color`: yes, no, or not sure (None)."""
    share, main = shares[COLORS.index(color)], COLORS[int(shares.argmax())]
    if share >= MOST:
        return True
    return False if share <= FEW and frozenset((main, color)) not in NEAR else None


def has_both(shares: np.ndarray, first: str, second: str) -> bool | None:
    """Whether a thing of these `color_shares` is called "black and white": yes, no, or not sure (None)."""
    one, other = shares[COLORS.index(first)], shares[COLORS.index(second)]
    if min(one, other) >= EACH and one + other >= TOGETHER:
        return True
    return False if min(one, other) <= FEW / 3 else None


def sure_pairs(shares: np.ndarray) -> list[tuple[str, str]]:
    """The pairs of colors that a thing is called by, such as black and white."""
    much = [COLORS[number] for number in np.flatnonzero(shares >= EACH)]
    pairs = [pair for pair in combinations(much, 2) if {"black", "white"} & set(pair) and frozenset(pair) not in NEAR]
    return [pair for pair in pairs if has_both(shares, *pair)]


def sure_color(shares: np.ndarray) -> str | None:
    """The color that most pixels have, None where no color has most."""
    best = int(shares.argmax())
    return COLORS[best] if shares[best] >= MOST else None


@functools.cache
def _table() -> np.ndarray:
    """The nearest name of each of 32 x 32 x 32 bins of sRGB, uint8 (32768,)."""
    steps = np.arange(32) * 8 + 4
    bins = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    shades = np.array([shade for shades in REFERENCES.values() for shade in shades])
    owner = np.repeat(np.arange(len(COLORS)), [len(shades) for shades in REFERENCES.values()])
    distance = ((to_lab(bins)[:, None] - to_lab(shades)[None]) ** 2).sum(axis=-1)
    return owner[distance.argmin(axis=1)].astype(np.uint8)


def to_lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (N, 3) of sRGB (N, 3), 0 to 255, under the white of D65 (CIE 15, IEC 61966-2-1)."""
    values = np.asarray(rgb, dtype=float) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    root = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * root[:, 1] - 16, 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])], axis=-1)
