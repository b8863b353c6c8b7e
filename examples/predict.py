"""Find what expressions refer to in a picture.

    python examples/predict.py photo.jpg "the red mug" "the chair on the left" --model path/to/model

Writes photo_overlay.png and one mask per expression, photo_mask_1.png …, to --output_dir (default: beside the picture).
"""

from argparse import ArgumentParser
from pathlib import Path

from PIL import Image
from transformers import pipeline

import m3dec  # noqa: F401 - registers the pipeline
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.drawing import contact_sheet, overlay
from m3dec.processing.image_processing_m3dec import rgb_array


def main():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("expressions", nargs="+", metavar="EXPRESSION")
    parser.add_argument(
        "--model", default=str(SHIPPED_CHECKPOINT), help="a folder or hub name; default: drawn scenes only"
    )
    parser.add_argument("--threshold", type=float, default=0.5, help="of the probability")
    parser.add_argument("--output_dir", type=Path, default=None)
    arguments = parser.parse_args()
    folder = arguments.output_dir or arguments.image.parent
    folder.mkdir(parents=True, exist_ok=True)

    pipe = pipeline("referring-image-segmentation", model=arguments.model)
    answers = pipe(str(arguments.image), text=arguments.expressions, threshold=arguments.threshold)
    image = Image.fromarray(rgb_array(arguments.image))
    cells = []
    for number, answer in enumerate(answers, start=1):
        mask = folder / f"{arguments.image.stem}_mask_{number}.png"
        answer["mask"].save(mask)
        share = answer["mask"].histogram()[255] / (image.width * image.height)
        print(f"{answer['label']}: score {answer['score']:.2f}, {share:.1%} of the picture, {mask}")
        cells.append((overlay(image, answer["mask"]), f"{answer['label']} ({answer['score']:.2f})"))
    drawn = folder / f"{arguments.image.stem}_overlay.png"
    contact_sheet([cells], cell_width=480).save(drawn)
    print(drawn)


if __name__ == "__main__":
    main()
