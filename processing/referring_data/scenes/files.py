"""Scenes as files, in the official layout of the referring data sets: one reader serves these and RefCOCO."""

import json
import os
import pickle
import shutil
from pathlib import Path

from tqdm import tqdm

from m3dec.processing.referring_data.schema import encode_mask

from .layout import SHAPES
from .painting import Scene, draw_scene


def write_scenes(
    root: str | Path, split_sizes: dict[str, int], seed: int = 0, image_size: int = 160, dataset: str = "scenes"
) -> Path:
    """Draw scenes and write `root/dataset/refs(scenes).p`, `root/dataset/instances.json` and `root/dataset/images/`.

    Args:
        root: the folder to write into.
        split_sizes: images per split, for instance `{"train": 8000, "val": 500, "compositional": 500}`. The split
            "compositional" asks for pairs of shape and color which no shape of another split has.
        seed: the same seed gives the same bytes; image k of a split does not depend on the sizes of the splits.
        image_size: side of the images in pixels, at least 96.
        dataset: name of the folder.

    Returns:
        The folder `root/dataset`. Every image has six sentences, one of each kind in `KINDS`, spread over three to six
        references. An annotation carries the shape's `attributes`; its mask is what can be seen of the shape: a
        polygon, or a compressed RLE where the shape has a hole or is partly hidden.

    Raises:
        ValueError: a size of a split or of the image is not possible.
        FileExistsError: the folder is already there.
    """
    if not split_sizes or any(not isinstance(size, int) or size < 0 for size in split_sizes.values()):
        raise ValueError(f"split_sizes must give each split a number of images, such as train=100, got {split_sizes}.")
    folder = Path(root) / dataset
    if folder.exists():
        raise FileExistsError(f"Scenes are written into a new folder, but {folder} exists. Delete it or rename it.")
    unfinished = folder.with_name(f".{dataset}-{os.getpid()}")
    (unfinished / "images").mkdir(parents=True)
    try:
        refs, instances = [], {"info": {"seed": seed}, "images": [], "annotations": [], "categories": categories()}
        images = [(split, index) for split, size in split_sizes.items() for index in range(size)]
        for split, index in tqdm(images, desc="drawing scenes", unit="image"):
            scene = draw_scene(seed, split, index, image_size)
            name = f"scenes_{split}_{index:06d}.jpg"
            scene.image.save(unfinished / "images" / name, quality=95, subsampling=0)
            add_to_files(scene, name, split, refs, instances)
        (unfinished / "instances.json").write_text(json.dumps(instances), encoding="utf-8")
        (unfinished / "refs(scenes).p").write_bytes(pickle.dumps(refs, protocol=2))
        unfinished.rename(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    return folder


def categories() -> list[dict]:
    return [{"id": i, "name": name, "supercategory": "shape"} for i, name in enumerate(SHAPES, start=1)]


def add_to_files(scene: Scene, file_name: str, split: str, refs: list[dict], instances: dict):
    """Append a scene to the two lists of the official layout; ids count on from what is there."""
    image_id = len(instances["images"]) + 1
    width, height = scene.image.size
    instances["images"].append({"id": image_id, "file_name": file_name, "height": height, "width": width})
    first_annotation = len(instances["annotations"]) + 1
    for shape in scene.shapes:
        polygon = shape.is_whole and not shape.hole
        instances["annotations"].append(
            {
                "id": len(instances["annotations"]) + 1,
                "image_id": image_id,
                "category_id": SHAPES.index(shape.attributes["shape"]) + 1,
                "iscrowd": 0,
                "area": int(shape.mask.sum()),
                "bbox": list(shape.bbox),
                "segmentation": [[c for point in shape.outline for c in point]] if polygon else encode_mask(shape.mask),
                "attributes": shape.attributes,
            }
        )
    next_sentence = sum(len(ref["sent_ids"]) for ref in refs[-1:]) + (refs[-1]["sent_ids"][0] if refs else 0)
    for target in sorted({expression.target for expression in scene.expressions}):
        said = [expression for expression in scene.expressions if expression.target == target]
        sent_ids = list(range(next_sentence, next_sentence + len(said)))
        next_sentence += len(said)
        annotation_id = first_annotation + target
        refs.append(
            {
                "ref_id": len(refs) + 1,
                "ann_id": annotation_id,
                "category_id": instances["annotations"][annotation_id - 1]["category_id"],
                "image_id": image_id,
                "file_name": f"{Path(file_name).stem}_{annotation_id}.jpg",
                "split": split,
                "sent_ids": sent_ids,
                "sentences": [
                    {"raw": e.raw, "sent": e.sent, "sent_id": i, "tokens": e.sent.split(), "category": e.kind}
                    for i, e in zip(sent_ids, said, strict=True)
                ],
            }
        )
