"""The official layout of the referring data sets: `refs(<split by>).p` and `instances.json`, as `lichengunc/refer`."""

import json
import pickle
from pathlib import Path

import datasets
from pycocotools import mask as coco_mask
from tqdm import tqdm

from .schema import REFERRING_FEATURES


def load_referring_dataset(source: str, **options) -> datasets.DatasetDict:
    """Load a referring data set as one table per split, one row per reference.

    Args:
        source: where the data comes from. "refer" is the official layout on disk.
        options: what that source takes; for "refer" see `read_refer_files`.

    Returns:
        A `datasets.DatasetDict` whose tables have `REFERRING_FEATURES`.

    Raises:
        ValueError: no such source, or files that contradict each other.
        FileNotFoundError: a file or picture is not there.
        UnsafePickleError: the refs file asks for code to be run.
    """
    if source != "refer":
        raise ValueError(f"The source must be 'refer', the official files on disk, but it is {source!r}.")
    return read_refer_files(**options)


def read_refer_files(
    root: str | Path, dataset: str, split_by: str, image_root: str | Path | None = None
) -> datasets.DatasetDict:
    """Read `root/dataset/refs(split_by).p` and `root/dataset/instances.json` into memory.

    Args:
        root: the folder that holds one folder per data set.
        dataset: that folder's name, for instance "refcoco" or "scenes".
        split_by: who made the splits, the name in the parentheses: "unc", "umd", "google", "scenes".
        image_root: the folder of the pictures; `root/dataset/images` where it is not given.

    Returns:
        One table per split named in the refs file, in the order of the file. Pictures are kept as paths and decoded
        when a row is asked for; masks are the union of all polygons of the object.
    """
    folder = Path(root) / dataset
    image_root = folder / "images" if image_root is None else Path(image_root)
    refs = read_refs(folder, split_by)
    images, annotations = read_instances(folder)
    require_pictures(image_root, {find(images, ref, "image_id", folder)["file_name"] for ref in refs})

    columns = {}  # split → column → values
    for ref in tqdm(refs, desc=f"reading {dataset}", unit="ref"):
        row = row_of(ref, images, annotations, image_root, folder)
        split = columns.setdefault(ref["split"], {name: [] for name in REFERRING_FEATURES})
        for name, value in row.items():
            split[name].append(value)
    return datasets.DatasetDict(
        {split: datasets.Dataset.from_dict(table, features=REFERRING_FEATURES) for split, table in columns.items()}
    )


def row_of(ref: dict, images: dict, annotations: dict, image_root: Path, folder: Path) -> dict:
    """The row of one reference. The picture's name is the one in instances.json: the ref's own is not a file's."""
    image = find(images, ref, "image_id", folder)
    annotation = find(annotations, ref, "ann_id", folder)
    x, y, width, height = annotation["bbox"]
    return {
        "image": str(image_root / image["file_name"]),
        "image_id": ref["image_id"],
        "ref_id": ref["ref_id"],
        "ann_id": [ref["ann_id"]],
        "category_id": ref["category_id"],
        "file_name": image["file_name"],
        "height": image["height"],
        "width": image["width"],
        "bbox": [x, y, x + width, y + height],
        "sentences": [
            {name: sentence.get(name) for name in ("sent_id", "raw", "sent", "category")}
            for sentence in ref["sentences"]
        ],
        "mask": union_of_parts(annotation, image["height"], image["width"]),
    }


def union_of_parts(annotation: dict, height: int, width: int) -> dict:
    """One compressed mask from a COCO segmentation: overlapping polygons are united, not added."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, dict):
        if list(segmentation["size"]) != [height, width]:
            raise ValueError(
                f"A mask must have the size of its image, but annotation {annotation['id']} is {segmentation['size']} "
                f"and its image {[height, width]} (height, width). Correct the sizes in instances.json."
            )
        compressed = isinstance(segmentation["counts"], str)
        runs = segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)
    else:
        # A part of one or two points has no area, and pycocotools would take four numbers for a box.
        parts = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not parts or any(len(polygon) % 2 for polygon in parts):
            raise ValueError(
                "An object must have a polygon, a list x, y, x, y, … of at least three points, but annotation "
                f"{annotation['id']} has {segmentation!r:.80}. Correct or remove it in instances.json."
            )
        runs = coco_mask.merge(coco_mask.frPyObjects(parts, height, width))
    counts = runs["counts"]
    return {"size": [height, width], "counts": counts if isinstance(counts, str) else counts.decode("ascii")}


class UnsafePickleError(pickle.UnpicklingError):
    """A refs file asked for a Python object to be imported or called. Nothing of it was run."""


class PlainUnpickler(pickle.Unpickler):
    """Reads lists, dicts, strings and numbers; anything that would have to be imported is refused."""

    def find_class(self, module, name):
        raise UnsafePickleError(
            f"A refs file holds lists, dicts, strings and numbers only, but this one asks for {module}.{name}. "
            "Nothing was run. Do not use the file; fetch it again from where the data set was published."
        )

    def persistent_load(self, pid):
        raise UnsafePickleError(
            f"A refs file holds lists, dicts, strings and numbers only, but this one asks for the outside object "
            f"{pid!r:.80}. Nothing was run. Do not use the file; fetch it again from where the data set was published."
        )


def read_refs(folder: Path, split_by: str) -> list[dict]:
    """The references of `folder/refs(split_by).p`; the file may be a Python 2 pickle."""
    path = folder / f"refs({split_by}).p"
    if not path.is_file():
        there = sorted(p.name[len("refs(") : -len(").p")] for p in folder.glob("refs(*).p"))
        advice = f"Files there: split_by={there}." if there else "There is none; is root the folder above the data set?"
        raise FileNotFoundError(f"The references are read from {path}, which does not exist. {advice}")
    with path.open("rb") as file:
        return PlainUnpickler(file, encoding="latin1").load()


def read_instances(folder: Path) -> tuple[dict, dict]:
    """Images and annotations of `folder/instances.json`, each by its id."""
    path = folder / "instances.json"
    if not path.is_file():
        raise FileNotFoundError(f"Masks are read from {path}, which does not exist. Put it beside refs(*).p.")
    instances = json.loads(path.read_text(encoding="utf-8"))
    return tuple({entry["id"]: entry for entry in instances[name]} for name in ("images", "annotations"))


def find(entries: dict, ref: dict, key: str, folder: Path) -> dict:
    """The image or annotation a reference points to."""
    if ref[key] not in entries:
        raise ValueError(
            f"Every reference must have its {key} in instances.json, but {ref[key]} of reference {ref['ref_id']} is "
            f"not in {folder / 'instances.json'}. Take both files from the same release."
        )
    return entries[ref[key]]


def require_pictures(image_root: Path, names: set[str]):
    """Say at once which pictures are missing, instead of in the middle of a training."""
    if not image_root.is_dir():
        raise FileNotFoundError(f"Pictures are read from {image_root}, which is not a folder. Pass image_root=…")
    missing = sorted(name for name in names if not (image_root / name).is_file())
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} pictures are not in {image_root}, such as {missing[:3]}. "
            "Complete the folder, or pass another image_root."
        )
