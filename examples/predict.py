"""Find what expressions refer to in images.

    m3dec predict photo.jpg "the red mug" "the chair on the left"
    m3dec predict a.jpg https://host/b.jpg "the cat" --model path/to/model --json > masks.jsonl

What is a file, an address, or ends like an image's name (.jpg, .png, …) is an image, all else is an expression. All
expressions are looked for in all images. Writes photo_overlay.png and a mask for each expression, photo_mask_1.png …,
beside the image or into --output_dir. With --json it prints a line for each answer instead, with the mask as COCO run
lengths, and writes only what --output names.

Exit status: 0; 1 where an image could not be answered, after all others were; 2 for a call that makes no sense.
"""

import json
import os
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from tqdm import tqdm
from transformers import pipeline

import m3dec  # noqa: F401 - registers the pipeline
from m3dec.examples.user_errors import exits_with_message, loading
from m3dec.hub import PHOTOS_CHECKPOINT
from m3dec.processing.drawing import contact_sheet, overlay
from m3dec.processing.images import rgb_array
from m3dec.processing.masks import run_lengths

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@exits_with_message
def main(arguments: list[str] | None = None):
    options = parse(arguments)
    with loading(options.model):
        pipe = pipeline("referring-image-segmentation", model=options.model)
    failed = False
    bar = tqdm(options.images, desc="images", disable=len(options.images) == 1)
    for path in bar:
        try:
            image = rgb_array(path)
            answers = pipe(image, text=options.expressions, threshold=options.threshold)
            lines = report(path, image, answers, options)
        except (ValueError, OSError) as error:
            failed = True
            tqdm.write(f"{path}: {error}", file=sys.stderr)
            continue
        for line in lines:
            bar.write(line.encode("utf-8", "replace").decode())  # to the standard output, which takes no lone surrogate
    if failed:
        raise SystemExit(1)


def parse(arguments: list[str] | None) -> Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("inputs", nargs="+", metavar="IMAGE or EXPRESSION")
    parser.add_argument(
        "--model",
        default=str(PHOTOS_CHECKPOINT),
        help="a folder or a name on the Hub; default: the checkpoint for photographs that ships with m3dec",
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="of the probability, between 0 and 1")
    parser.add_argument("--output", type=Path, help="the overlay's file, for one image")
    parser.add_argument("--output_dir", type=Path, help="for overlays and masks; default: beside each image")
    parser.add_argument("--json", action="store_true", help="print the answers, a JSON object a line")
    options = parser.parse_args(arguments)
    options.images = [name for name in options.inputs if is_image(name)]
    options.expressions = [text for text in options.inputs if not is_image(text)]
    if not options.images or not options.expressions:
        parser.error("name at least one image, a file that ends like one, and one expression, such as 'the cat'")
    if options.output and len(options.images) > 1:
        parser.error("--output is for one image; several have --output_dir")
    if options.output and options.output.suffix.lower() not in SUFFIXES:
        parser.error(f"--output is an image's file, such as overlay.png, but it is {options.output}")
    if not 0 < options.threshold < 1:
        parser.error(f"--threshold is a probability between 0 and 1, but it is {options.threshold}")
    try:
        written = [path for name in options.images for path in files_about(name, options)]
    except ValueError as error:
        parser.error(f"an address cannot be read: {error}")
    places = [path.resolve() for path in written]
    if twice := next((path for path in written if places.count(path.resolve()) > 1), None):
        parser.error(f"two images would be written to {twice}; ask about them apart, or with --json")
    read = {Path(name).resolve() for name in options.images}
    if lost := next((path for path in written if path.resolve() in read), None):
        parser.error(f"an answer would be written over the image {lost}; give another --output_dir or --output")
    return options


def is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) or "://" in name or os.path.isfile(name)


def files_about(image: str, options: Namespace) -> list[Path]:
    """What is written about an image: the overlay, then a mask for each expression; with --json only --output."""
    if options.json:
        return [options.output] if options.output else []
    fetched = "://" in image  # then the files go into the folder where the program runs
    path = Path(urlsplit(image).path if fetched else image)
    folder = options.output_dir or (Path() if fetched else path.parent)
    masks = [folder / f"{path.stem}_mask_{number}.png" for number in range(1, len(options.expressions) + 1)]
    return [options.output or folder / f"{path.stem}_overlay.png", *masks]


def report(path: str, image: np.ndarray, answers: list[dict], options: Namespace) -> list[str]:
    """Write what is asked for, and give the lines to print."""
    files = files_about(path, options)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    if files:
        found = [f"{answer['score']:.2f}" if answer["mask"].getbbox() else "nothing found" for answer in answers]
        image = Image.fromarray(image)
        cells = [
            (overlay(image, answer["mask"]), f"{answer['label']} ({what})")
            for answer, what in zip(answers, found, strict=True)
        ]
        contact_sheet([cells], cell_width=480).save(files[0])
    if options.json:
        return [as_json(path, answer) for answer in answers]
    lines = []
    for answer, file in zip(answers, files[1:], strict=True):
        mask = answer["mask"]
        mask.save(file)
        share = mask.histogram()[255] / (mask.width * mask.height)
        found = f"score {answer['score']:.2f}, {share:.1%} of the image" if share else "nothing found"
        lines.append(f"{answer['label']}: {found}, {file}")
    return [*lines, str(files[0])]


def as_json(image: str, answer: dict) -> str:
    mask = answer["mask"]
    left, top, right, bottom = mask.getbbox() or (0, 0, 0, 0)
    found = {"area": mask.histogram()[255], "bbox": [float(side) for side in (left, top, right - left, bottom - top)]}
    values = {"image": image, "expression": answer["label"], "score": answer["score"], **found}
    values["mask"] = run_lengths(np.asarray(mask) > 0)
    return json.dumps(values, ensure_ascii=False)


if __name__ == "__main__":
    main()
