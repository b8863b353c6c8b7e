"""The tour: load the shipped model, ask it about scenes it has never seen, look, measure, save, load, ask again.

    python examples/quickstart.py [OUTPUT_FOLDER]

Offline, under a minute on two cores. Writes OUTPUT_FOLDER/quickstart.png (default: outputs/quickstart).
"""

import sys
import tempfile
from pathlib import Path

import datasets
from accelerate import Accelerator
from transformers import pipeline

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.examples.evaluate_referring import by_kind, evaluate, table
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.drawing import contact_sheet, outline, overlay
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.sampling import references_by_image
from m3dec.processing.referring_data.scenes import write_scenes
from m3dec.processing.referring_data.schema import decode_mask

UNSEEN_SEED = 1  # the shipped model was trained on seed 0


def main():
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "outputs/quickstart")
    output.mkdir(parents=True, exist_ok=True)

    print("1. Load the shipped model.")
    model = M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT)
    processor = M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT)

    with tempfile.TemporaryDirectory() as folder:
        print("2. Draw scenes that it has never seen, in the layout of RefCOCO, and read them as RefCOCO is read.")
        write_scenes(folder, split_sizes={"test": 100}, seed=UNSEEN_SEED)
        scenes = load_referring_dataset("refer", root=folder, dataset="scenes", split_by="scenes")["test"]

        print("3. Ask it every sentence, each image encoded once, and measure.")
        results = evaluate(model, processor, scenes, Accelerator(cpu=True))
        print(table(by_kind(results)))

        print("4. Save it, load it again by transformers' pipeline, ask again, and look.")
        model.save_pretrained(Path(folder) / "model")
        processor.save_pretrained(Path(folder) / "model")
        pipe = pipeline("referring-image-segmentation", model=str(Path(folder) / "model"), device="cpu")
        picture = output / "quickstart.png"
        draw_answers(pipe, scenes).save(picture)
    print(f"The picture is {picture}: open it.")


def draw_answers(pipe, scenes: datasets.Dataset, images: int = 4, expressions: int = 3):
    """A sheet with a row per image: the image, then for some expressions the predicted mask and the truth's outline."""
    rows = []
    for numbers in list(references_by_image(scenes).values())[:images]:
        references = list(scenes.select(numbers[:expressions]))
        image = references[0]["image"]
        asked = [reference["sentences"][0]["sent"] for reference in references]
        row = [image]
        for reference, answer in zip(references, pipe(image, text=asked), strict=True):
            drawn = outline(overlay(image, answer["mask"]), decode_mask(reference["mask"]))
            row.append((drawn, f"{answer['label']} ({answer['score']:.2f})"))
        rows.append(row)
    return contact_sheet(rows, titles=["image", *["answer, and the truth's outline"] * expressions])


if __name__ == "__main__":
    main()
