"""A whole scene, painted: a quiet background, then the shapes from back to front."""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .language import Expression, describe
from .layout import COLORS, Shape, draw_attributes, place

PAPER = (252, 250, 244)  # inside an outlined shape
FINE = 4  # shapes are drawn this much larger, then reduced: smooth edges


@dataclass
class Scene:
    """An image (S x S, RGB), its shapes from back to front, and one expression of each kind."""

    image: Image.Image
    shapes: list[Shape]
    expressions: list[Expression]


def draw_scene(seed: int, split: str = "train", index: int = 0, image_size: int = 160) -> Scene:
    """Image `index` of a split. The split "compositional" has targets of `RESERVED_PAIRS`, others have none."""
    if image_size < 96:
        raise ValueError(f"image_size must be at least 96, or small shapes are a blur, but it is {image_size}.")
    rng = random.Random(f"{seed}/{split}/{index}")  # seeded through SHA-512: the same in every process
    number = rng.randint(3, 8)
    compositional = split == "compositional"
    while True:
        shapes = place(rng, draw_attributes(rng, number, compositional), image_size)
        expressions = shapes and describe(rng, shapes, image_size, compositional)
        if expressions:
            return Scene(paint(rng, shapes, image_size), shapes, expressions)


def paint(rng: random.Random, shapes: list[Shape], image_size: int) -> Image.Image:
    """The image: a quiet background, then the shapes from back to front."""
    image = background(rng, image_size)
    for shape in shapes:
        paint_shape(rng, image, shape)
    return image


def background(rng: random.Random, image_size: int) -> Image.Image:
    """Two grayish tones that fade into each other, grain, and a few thin lines: nothing with a color's name."""
    level = rng.choice((rng.uniform(196, 236), rng.uniform(196, 236), rng.uniform(58, 96)))
    levels = [level + rng.uniform(-16, 16) for _ in range(2)]
    tones = np.array([[level + rng.uniform(-5, 5) for _ in range(3)] for level in levels])
    angle = rng.uniform(0, math.tau)
    axis = np.linspace(-0.5, 0.5, image_size)
    slope = (0.5 + 0.7 * (axis[None, :] * math.cos(angle) + axis[:, None] * math.sin(angle)))[:, :, None]
    grain = np.frombuffer(rng.randbytes(image_size * image_size), dtype=np.uint8).reshape(image_size, image_size, 1)
    pixels = tones[0] + slope * (tones[1] - tones[0]) + (grain / 255 - 0.5) * rng.uniform(0, 24)
    image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(0, 6)):
        ends = [rng.uniform(-0.1, 1.1) * image_size for _ in range(4)]
        step = rng.choice((-30, 30))
        draw.line(ends, fill=tuple(min(255, int(tone + step)) for tone in tones[0]), width=1)
    return image


def paint_shape(rng: random.Random, image: Image.Image, shape: Shape):
    """Draw one shape four times as large on a patch of its own, and paste it reduced."""
    left, top = (int(c - 1.3 * shape.radius) - 1 for c in shape.center)
    side = (2 * int(1.3 * shape.radius) + 4) * FINE
    outline, hole = ([((x - left) * FINE, (y - top) * FINE) for x, y in part] for part in (shape.outline, shape.hole))
    color = tuple(min(255, max(0, c + rng.randint(-8, 8))) for c in COLORS[shape.attributes["colour"]])
    edge = tuple(int(0.55 * c) for c in color)
    solid = shape.attributes["fill"] == "solid"

    patch = Image.new("RGB", (side, side), color if solid else PAPER)
    draw = ImageDraw.Draw(patch)
    paint_texture(rng, draw, shape, color, edge, side)
    line, width = (edge, FINE) if solid else (color, round(0.24 * shape.radius * FINE))
    draw.line([*outline, *outline[:2]], fill=line, width=2 * width, joint="curve")
    alpha = Image.new("L", (side, side), 0)
    cut = ImageDraw.Draw(alpha)
    cut.polygon(outline, fill=255)
    if hole:
        draw.line([*hole, *hole[:2]], fill=line, width=2 * width, joint="curve")
        cut.polygon(hole, fill=0)
    image.paste(patch.reduce(FINE), (left, top), alpha.reduce(FINE))


def paint_texture(rng: random.Random, draw: ImageDraw.ImageDraw, shape: Shape, color, edge, side: int):
    """Stripes or dots over the whole patch, dark on light colors and light on dark ones."""
    texture = shape.attributes["texture"]
    if texture == "plain":
        return
    ink = edge if shape.attributes["colour"] in ("yellow", "orange", "pink") else PAPER
    step = max(0.42 * shape.radius, 4.5) * FINE
    count = int(side / step) + 2
    angle = rng.choice((0, 1, 2, 3)) * math.pi / 4 + rng.uniform(-0.1, 0.1)
    cos, sin = math.cos(angle), math.sin(angle)
    for i in range(-count, count):
        across = (i + 0.5) * step
        if texture == "striped":
            x, y = side / 2 + across * cos, side / 2 + across * sin
            ends = (x - side * sin, y + side * cos, x + side * sin, y - side * cos)
            draw.line(ends, fill=ink, width=round(0.42 * step))
            continue
        for j in range(-count, count):
            along = (j + 0.5 * (i % 2)) * step * 1.1
            x, y, r = side / 2 + across * cos - along * sin, side / 2 + across * sin + along * cos, 0.28 * step
            if 0 < x < side and 0 < y < side:
                draw.ellipse((x - r, y - r, x + r, y + r), fill=ink)
