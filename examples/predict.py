"""Find what expressions refer to in pictures.

    m3dec predict photo.jpg "the red mug" "the chair on the left"
    m3dec predict a.jpg https://host/b.jpg "the cat" --model path/to/model --json > masks.jsonl

What is a file, an address, or ends like a picture's name (.jpg, .png, …) is a picture, all else an expression; all
expressions are looked for in all pictures. Writes photo_overlay.png and one mask an expression, photo_mask_1.png …,
beside the picture or to --output_dir. With --json, prints a line an answer with the mask as COCO run lengths instead,
and writes only what --output names.

Exit status: 0; 1 where a picture could not be answered, when the others are; 2 for a call that makes no sense.
"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from tqdm import tqdm
from transformers import pipeline

import m3dec  # noqa: F401 - registers the pipeline
from m3dec.hub import PHOTOS_CHECKPOINT
from m3dec.processing.drawing import contact_sheet, overlay
from m3dec.processing.images import rgb_array

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def main(arguments: list[str] | None = None):
    options = parse(arguments)
    pipe = load(options.model)
    failed = 0
    bar = tqdm(options.pictures, desc="pictures", disable=len(options.pictures) == 1)
    for path in bar:
        try:
            picture = Image.fromarray(rgb_array(path))
            answers = pipe(picture, text=options.expressions, threshold=options.threshold)
            lines = report(path, picture, answers, options)
        except (ValueError, OSError) as error:
            failed += 1
            tqdm.write(f"{path}: {error}", file=sys.stderr)
            continue
        for line in lines:
            bar.write(line.encode("utf-8", "replace").decode())  # to the standard output, which takes no lone surrogate
    if failed:
        raise SystemExit(1)


def parse(arguments: list[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("inputs", nargs="+", metavar="PICTURE or EXPRESSION")
    parser.add_argument(
        "--model",
        default=str(PHOTOS_CHECKPOINT),
        help="a folder or a name on the Hub; default: the checkpoint for photographs that ships with m3dec",
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="of the probability, between 0 and 1")
    parser.add_argument("--output", type=Path, help="the overlay's file, for one picture")
    parser.add_argument("--output_dir", type=Path, help="for overlays and masks; default: beside each picture")
    parser.add_argument("--json", action="store_true", help="print the answers, a JSON object a line")
    options = parser.parse_args(arguments)
    options.pictures = [name for name in options.inputs if is_picture(name)]
    options.expressions = [text for text in options.inputs if not is_picture(text)]
    if not options.pictures or not options.expressions:
        parser.error("name at least one picture, a file that ends like one, and one expression, such as 'the cat'")
    if options.output and len(options.pictures) > 1:
        parser.error("--output is for one picture; several have --output_dir")
    if options.output and options.output.suffix.lower() not in PICTURES:
        parser.error(f"--output is a picture's file, such as overlay.png, but it is {options.output}")
    try:
        written = [path for name in options.pictures for path in files_about(name, options)]
    except ValueError as error:
        parser.error(f"an address cannot be read: {error}")
    places = [path.resolve() for path in written]
    if twice := next((path for path in written if places.count(path.resolve()) > 1), None):
        parser.error(f"two pictures would be written to {twice}; ask about them apart, or with --json")
    read = {Path(name).resolve() for name in options.pictures}
    if lost := next((path for path in written if path.resolve() in read), None):
        parser.error(f"an answer would be written over the picture {lost}; give another --output_dir or --output")
    if not 0 < options.threshold < 1:
        parser.error(f"--threshold is a probability between 0 and 1, but it is {options.threshold}")
    return options


def is_picture(name: str) -> bool:
    return name.lower().endswith(PICTURES) or "://" in name or os.path.isfile(name)


def load(model: str):
    try:
        return pipeline("referring-image-segmentation", model=model)
    except (OSError, ValueError, SafetensorError) as error:
        raise SystemExit(f"{model} cannot be loaded: {error}") from error


def beside(picture: str, options: Namespace, kind: str) -> Path:
    """Where a file about a picture goes; for one that was fetched, into the folder where the program runs."""
    name = Path(urlsplit(picture).path if "://" in picture else picture)
    folder = options.output_dir or (Path() if "://" in picture else name.parent)
    return folder / f"{name.stem}_{kind}.png"


def files_about(picture: str, options: Namespace) -> list[Path]:
    """What is written about a picture: with --json only --output, else the overlay and a mask an expression."""
    if options.json:
        return [options.output] if options.output else []
    masks = [beside(picture, options, f"mask_{number}") for number in range(1, len(options.expressions) + 1)]
    return [options.output or beside(picture, options, "overlay"), *masks]


def report(path: str, picture: Image.Image, answers: list[dict], options: Namespace) -> list[str]:
    """Write what is asked for, and give the lines to print."""
    lines = [as_json(path, answer) for answer in answers] if options.json else save_masks(path, answers, options)
    if options.output or not options.json:
        drawn = options.output or beside(path, options, "overlay")
        drawn.parent.mkdir(parents=True, exist_ok=True)
        draw(picture, answers).save(drawn)
        lines += [] if options.json else [str(drawn)]
    return lines


def save_masks(picture: str, answers: list[dict], options: Namespace) -> list[str]:
    """Write the masks, and give a line about each."""
    lines = []
    for number, answer in enumerate(answers, start=1):
        path = beside(picture, options, f"mask_{number}")
        path.parent.mkdir(parents=True, exist_ok=True)
        answer["mask"].save(path)
        share = answer["mask"].histogram()[255] / (answer["mask"].width * answer["mask"].height)
        found = f"score {answer['score']:.2f}, {share:.1%} of the picture" if share else "nothing found"
        lines.append(f"{answer['label']}: {found}, {path}")
    return lines


def as_json(picture: str, answer: dict) -> str:
    from pycocotools import mask as coco_mask

    runs = coco_mask.encode(np.asfortranarray(answer["mask"]) // 255)
    mask = {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode()}
    found = {"area": int(coco_mask.area(runs)), "bbox": coco_mask.toBbox(runs).tolist()}
    values = {"image": picture, "expression": answer["label"], "score": answer["score"], **found, "mask": mask}
    return json.dumps(values, ensure_ascii=False)


def draw(picture: Image.Image, answers: list[dict]) -> Image.Image:
    cells = [(overlay(picture, answer["mask"]), f"{answer['label']} ({answer['score']:.2f})") for answer in answers]
    return contact_sheet([cells], cell_width=480)


if __name__ == "__main__":
    main()
