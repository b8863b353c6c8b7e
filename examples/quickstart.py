"""Ask twenty questions about five photographs, and look at the answers.

    python examples/quickstart.py [OUTPUT_FOLDER]

Offline, in seconds. Prints a table, and writes OUTPUT_FOLDER/quickstart.png (default: outputs/quickstart).
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from transformers import pipeline

import m3dec  # noqa: F401 - registers the model and the pipeline with transformers
from m3dec.examples import PHOTOGRAPHS
from m3dec.hub import PHOTOS_CHECKPOINT
from m3dec.processing.drawing import contact_sheet, overlay

EXPRESSIONS = {  # an image, and expressions of things in it
    "astronaut.jpg": ["the woman", "her hair", "the face of the woman", "the person"],
    "cat.jpg": ["the cat", "the cute kitty please", "brown animal", "the second cat from the left"],  # there is one
    "coffee.jpg": ["the cup", "cup in the middle", "the spoon", "the bicycle"],  # there is no bicycle
    "photographer.jpg": ["the man", "his hair", "the coat", "guy in black"],
    "rocket.jpg": ["the rocket", "the car", "the boat", "the airplane"],  # there is only a rocket
}


def main():
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/quickstart")
    output.mkdir(parents=True, exist_ok=True)
    pipe = pipeline("referring-image-segmentation", model=PHOTOS_CHECKPOINT)

    print(f"{'image':18}{'expression':28}share of the image  score")
    rows = []
    for name, expressions in EXPRESSIONS.items():
        image = Image.open(PHOTOGRAPHS / name)
        row = [image]
        for answer in pipe(image, text=expressions):  # the image is encoded once for all of them
            expression, mask = answer["label"], answer["mask"]
            share = np.mean(np.asarray(mask) > 0)
            score = f"{answer['score']:.2f}" if share else "nothing found"
            print(f"{name:18}{expression:28}{share:18.1%}  {score}")
            row.append((overlay(image, mask), f"{expression} ({score})"))
        rows.append(row)

    contact_sheet(rows).save(output / "quickstart.png")
    print(f"All answers are drawn in {output / 'quickstart.png'}: open it.")


if __name__ == "__main__":
    main()
