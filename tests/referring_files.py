"""A small RefCOCO-like data set, every mask known from pycocotools alone, in all the layouts it is published in."""

import io
import json
import pickle
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
from datasets import Image, List, Value
from PIL import Image as Pillow
from pycocotools import mask as coco_mask

SPLITS = {"train": 70, "val": 14, "testA": 13, "testB": 13}  # images, three references in each
HEIGHTS, WIDTHS = (47, 53, 61, 67, 97, 101), (41, 71, 83, 89, 103)
KINDS = ("polygon", "overlapping", "parts", "outside", "fractions", "hole", "compressed", "crowd")
CATEGORIES = {1: "person", 5: "airplane", 18: "dog"}


@dataclass(frozen=True)
class DrawnImage:
    image_id: int
    height: int
    width: int
    data: bytes

    @cached_property
    def pixels(self) -> np.ndarray:
        return np.asarray(Pillow.open(io.BytesIO(self.data)))


@dataclass(frozen=True)
class Object:
    """What an annotation describes. Its parts are polygons or run lengths, each by itself."""

    ann_id: int
    category_id: int
    iscrowd: int
    bbox: list[float]  # x, y, width, height
    segmentation: list | dict
    parts: list


@dataclass(frozen=True)
class Reference:
    ref_id: int
    split: str
    image: DrawnImage
    objects: list[Object]
    sentences: list[dict]

    @cached_property
    def mask(self) -> np.ndarray:
        """The oracle: every pixel of any part, each part decoded by itself."""
        mask = np.zeros((self.image.height, self.image.width), dtype=bool)
        for part in [part for thing in self.objects for part in thing.parts]:
            mask |= coco_mask.decode(run_lengths(part, *mask.shape)) == 1
        return mask

    @property
    def box(self) -> list[float]:
        """x0, y0, x1, y1 around all objects."""
        x, y, width, height = np.array([thing.bbox for thing in self.objects] or np.empty((0, 4))).T
        return [x.min(), y.min(), (x + width).max(), (y + height).max()] if self.objects else []

    @property
    def polygons(self) -> list | None:
        """All polygons, None where the mask is given by run lengths."""
        return self.objects[0].segmentation if isinstance(self.objects[0].segmentation, list) else None


def run_lengths(part, height: int, width: int) -> dict:
    if isinstance(part, list):
        return coco_mask.frPyObjects([part], height, width)[0]
    return part if isinstance(part["counts"], str) else coco_mask.frPyObjects(part, height, width)


def build(num_images: dict[str, int] = SPLITS) -> list[Reference]:
    """330 references to 110 images, in no order, each kind of mask in each split; or fewer."""
    rng = np.random.default_rng(7)
    splits = [split for split, number in num_images.items() for _ in range(number)]
    references = []
    for number, split in enumerate(splits):
        image = draw_image(rng, number)
        for _ in range(3):
            place = len(references)
            thing = draw_object(rng, KINDS[place % len(KINDS)], place, image.height, image.width)
            references.append(Reference(5_000 + 3 * place, split, image, [thing], sentences(place)))
    rng.shuffle(references)
    return references


def draw_image(rng, number: int) -> DrawnImage:
    height, width = HEIGHTS[number % len(HEIGHTS)], WIDTHS[number % len(WIDTHS)]
    pixels = rng.integers(0, 256, (height, width) if number % 11 == 5 else (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "PNG" if number % 7 == 3 else "JPEG")
    return DrawnImage(100_003 + 17 * number, height, width, buffer.getvalue())


def draw_object(rng, kind: str, place: int, height: int, width: int) -> Object:
    def around(x: float, y: float, size: float, decimals: int = 0) -> list[float]:
        """A polygon with corners at all sides of a point given in parts of the image, as is its size."""
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        radii = rng.uniform(0.6, 1, 9) * size * min(height, width)
        corners = np.stack([x * width + radii * np.cos(angles), y * height + radii * np.sin(angles)], axis=1)
        return corners.round(decimals).ravel().tolist()

    rows, columns = np.mgrid[:height, :width]
    ring = np.abs(np.hypot(columns - 0.5 * width, rows - 0.4 * height) - 0.25 * min(height, width)) < 5
    spots = rng.random((height, width)) < 0.2
    segmentation = {
        "polygon": lambda: [around(0.5, 0.5, 0.4)],
        "overlapping": lambda: [around(0.4, 0.5, 0.3), around(0.5, 0.6, 0.3), around(0.45, 0.5, 0.3)],
        "parts": lambda: [around(0.2, 0.2, 0.15), around(0.8, 0.3, 0.15), around(0.6, 0.8, 0.15, decimals=2)],
        "outside": lambda: [around(place // len(KINDS) % 2, 0.97, 0.5, decimals=1)],
        "fractions": lambda: [around(0.6, 0.4, 0.35, decimals=2)],
        "hole": lambda: {"size": [height, width], "counts": runs_of(ring)},
        "compressed": lambda: compressed(ring | spots),
        "crowd": lambda: {"size": [height, width], "counts": runs_of(spots)},
    }[kind]()
    crowd = kind == "crowd"
    return Object(
        ann_id=900_100_000_000 + place if crowd else 2_165_301 + 2 * place,  # a crowd's are beyond 32 bits in COCO
        category_id=list(CATEGORIES)[place % len(CATEGORIES)],
        iscrowd=int(crowd),
        bbox=[0.25 * place, 1.5, 7.25, 0.75 * (1 + place)],  # no box of the mask, so that it cannot be made from it
        segmentation=segmentation,
        parts=segmentation if isinstance(segmentation, list) else [segmentation],
    )


def runs_of(mask) -> list[int]:
    """COCO's uncompressed run lengths, counted one pixel at a time down the columns."""
    runs, value = [0], False
    for pixel in np.asarray(mask).T.ravel():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def compressed(mask: np.ndarray) -> dict:
    runs = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in runs["size"]], "counts": runs["counts"].decode("ascii")}


def sentences(place: int) -> list[dict]:
    texts = [f"The {word} One at Café {place}" for word in ("LEFT", "far", "red", "Small")[: 1 + place % 4]]
    return [
        {"raw": f"{text}.", "sent": text.lower(), "sent_id": 40_000 + 10 * place + i, "tokens": text.lower().split()}
        for i, text in enumerate(texts)
    ]


def generalised(references: list[Reference]) -> list[Reference]:
    """gRefCOCO's kinds for each image: one object, two of them, all three, and nothing."""
    made = []
    for references_there in by_image(references).values():
        things = [reference.objects[0] for reference in references_there]
        for objects in (things[:1], things[:2], things, []):
            place, first = len(made), references_there[0]
            made.append(Reference(70_000 + place, first.split, first.image, objects, sentences(place)))
    return made


def by_image(references: list[Reference]) -> dict[int, list[Reference]]:
    grouped = {}
    for reference in references:
        grouped.setdefault(reference.image.image_id, []).append(reference)
    return grouped


def by_split(references: list[Reference]) -> dict[str, list[Reference]]:
    grouped = {}
    for reference in references:
        grouped.setdefault(reference.split, []).append(reference)
    return grouped


# The names of images.
def name_2014(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


def name_2017(image_id: int) -> str:
    return f"{image_id:012d}.jpg"


def name_refclef(image_id: int) -> str:
    return f"{image_id}.jpg"


# COCO's and the official files' records.
def image_record(image: DrawnImage, name=name_2014) -> dict:
    return {"license": 3, "file_name": name(image.image_id), "id": image.image_id} | {
        "height": image.height,
        "width": image.width,
    }


def annotation_record(thing: Object, image: DrawnImage) -> dict:
    return {
        "id": thing.ann_id,
        "image_id": image.image_id,
        "category_id": thing.category_id,
        "iscrowd": thing.iscrowd,
        "area": 1.0,
        "bbox": thing.bbox,
        "segmentation": thing.segmentation,
    }


def ref_record(reference: Reference) -> dict:
    thing = reference.objects[0]
    return {
        "ref_id": reference.ref_id,
        "ann_id": thing.ann_id,
        "category_id": thing.category_id,
        "image_id": reference.image.image_id,
        "file_name": f"COCO_train2014_{reference.image.image_id:012d}_{thing.ann_id}.jpg",  # no image's name
        "split": reference.split,
        "sent_ids": [sentence["sent_id"] for sentence in reference.sentences],
        "sentences": reference.sentences,
    }


def gref_record(reference: Reference) -> dict:
    return {
        **ref_record(replace(reference, objects=reference.objects or [NOTHING])),
        "ann_id": [thing.ann_id for thing in reference.objects] or [-1],
        "category_id": [thing.category_id for thing in reference.objects] or [-1],
    }


NOTHING = Object(-1, -1, 0, [], [], [])


# Official files: ROOT/dataset/refs(split_by).p, instances.json, images/.
def write_official(root, references, dataset="refcoco", split_by="unc", name=name_2014, image_name=None) -> Path:
    """`name` is in instances.json, `image_name` on the disk."""
    folder = Path(root) / dataset
    write_images(folder / "images", references, image_name or name)
    write_instances(folder / "instances.json", references, name)
    (folder / f"refs({split_by}).p").write_bytes(pickle.dumps([ref_record(ref) for ref in references], protocol=2))
    return Path(root)


def write_grefcoco(root, references: list[Reference]) -> Path:
    folder = Path(root) / "grefcoco"
    write_images(folder / "images", references, name_2014)
    write_instances(folder / "instances.json", references, name_2014)
    (folder / "grefs(unc).json").write_text(json.dumps([gref_record(reference) for reference in references]))
    return Path(root)


def write_images(folder: Path, references: list[Reference], name=name_2014) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for references_there in by_image(references).values():
        image = references_there[0].image
        (folder / name(image.image_id)).write_bytes(image.data)
    return folder


def write_instances(path: Path, references: list[Reference], name) -> None:
    images = {reference.image.image_id: reference.image for reference in references}
    annotations = {
        thing.ann_id: annotation_record(thing, reference.image)
        for reference in references
        for thing in reference.objects
    }
    instances = {
        "images": [image_record(image, name) for image in images.values()],
        "annotations": list(annotations.values()),
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
    }
    path.write_text(json.dumps(instances))


# Mirrors on the Hub: FOLDER/data/<split>-00000-of-00001.parquet.
SENTENCE = {"raw": Value("string"), "sent": Value("string"), "sent_id": Value("int64"), "tokens": List(Value("string"))}
INTEGER, TEXT, NUMBERS = Value("int64"), Value("string"), List(Value("float64"))

JOINED = datasets.Features(
    {
        "sent_ids": List(INTEGER),
        "file_name": TEXT,
        "ann_id": INTEGER,
        "ref_id": INTEGER,
        "image_id": INTEGER,
        "split": TEXT,
        "sentences": List(SENTENCE),
        "category_id": INTEGER,
        "raw_anns": TEXT,
        "raw_image_info": TEXT,
        "raw_sentences": TEXT,
        "image_path": TEXT,
        "bbox": NUMBERS,
        "captions": List(TEXT),
        "global_image_id": TEXT,
        "anns_id": TEXT,
    }
)
BENCHMARK = datasets.Features(
    {
        "image": Image(),
        "image_info": {"license": INTEGER, "file_name": TEXT, "id": INTEGER, "height": INTEGER, "width": INTEGER},
        "ref_list": List(
            {
                "ann_info": {
                    "area": Value("float64"),
                    "bbox": NUMBERS,
                    "category_id": INTEGER,
                    "id": INTEGER,
                    "image_id": INTEGER,
                    "iscrowd": INTEGER,
                    "segmentation": List(NUMBERS),
                },
                "ref_info": {
                    "ann_id": INTEGER,
                    "category_id": INTEGER,
                    "file_name": TEXT,
                    "image_id": INTEGER,
                    "ref_id": INTEGER,
                    "sent_ids": List(INTEGER),
                    "sentences": List(SENTENCE),
                    "split": TEXT,
                },
            }
        ),
    }
)
QUESTIONS = datasets.Features(
    {
        "question_id": TEXT,
        "image": Image(),
        "question": TEXT,
        "answer": List(TEXT),
        "segmentation": NUMBERS,
        "bbox": NUMBERS,
        "iscrowd": INTEGER,
        "file_name": TEXT,
    }
)
CLEANED = datasets.Features(
    {
        "image": Image(),
        "image_id": INTEGER,
        "file_name": TEXT,
        "samples": List(
            {
                "id": INTEGER,
                "category": TEXT,
                "label": TEXT,
                "sentences": List(TEXT),
                "bbox": NUMBERS,
                "mask": {"counts": TEXT, "size": List(INTEGER)},
            }
        ),
    }
)


def write_parquet(folder, split: str, rows: list[dict], features: datasets.Features) -> Path:
    path = Path(folder) / "data" / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(path)
    return Path(folder)


def embedded(image: DrawnImage) -> dict:
    return {"bytes": image.data, "path": name_2014(image.image_id)}


def joined_row(reference: Reference) -> dict:
    """jxu124/refcoco: a row a reference, no image."""
    image, thing, name = reference.image, reference.objects[0], name_2014(reference.image.image_id)
    return {
        **ref_record(reference),
        "raw_anns": json.dumps(annotation_record(thing, image)),
        "raw_image_info": json.dumps(image_record(image)),
        "raw_sentences": json.dumps(reference.sentences),
        "image_path": f"coco/train2014/{name}",
        "bbox": reference.box,
        "captions": [sentence["sent"] for sentence in reference.sentences],
        "global_image_id": f"coco.{image.image_id}",
        "anns_id": f"coco.{thing.ann_id}",
    }


def benchmark_row(references: list[Reference]) -> dict:
    """jxu124/refcoco-benchmark: a row an image; its column holds polygons only."""
    image = references[0].image
    return {
        "image": embedded(image),
        "image_info": image_record(image),
        "ref_list": [
            {"ann_info": annotation_record(ref.objects[0], image), "ref_info": ref_record(ref)} for ref in references
        ],
    }


def question_row(reference: Reference, number: int) -> dict:
    """lmms-lab/RefCOCO: a row a reference, ONE polygon."""
    (polygon,) = reference.polygons
    return {
        "question_id": str(reference.objects[0].ann_id),
        "image": embedded(reference.image),
        "question": "Please carefully observe the area circled in the image and come up with a caption for it.",
        "answer": [sentence["sent"] for sentence in reference.sentences],
        "segmentation": polygon,
        "bbox": reference.objects[0].bbox,
        "iscrowd": 0,
        "file_name": f"COCO_train2014_{reference.image.image_id:012d}_{number}.jpg",
    }


def cleaned_row(references: list[Reference]) -> dict:
    """moondream/refcoco-m: a row an image, all masks as compressed run lengths."""
    image = references[0].image
    samples = [
        {
            "id": reference.objects[0].ann_id,
            "category": CATEGORIES[reference.objects[0].category_id],
            "label": "thing",
            "sentences": [sentence["sent"] for sentence in reference.sentences],
            "bbox": reference.objects[0].bbox,
            "mask": compressed(reference.mask),
        }
        for reference in references
    ]
    return {
        "image": embedded(image),
        "image_id": image.image_id,
        "file_name": name_2014(image.image_id),
        "samples": samples,
    }


def write_joined(folder, references: list[Reference]) -> Path:
    theirs = {"train": "train", "val": "validation", "testA": "test", "testB": "testB"}
    for split, references_there in by_split(references).items():
        write_parquet(folder, theirs[split], [joined_row(reference) for reference in references_there], JOINED)
    return Path(folder)


def write_benchmark(folder, references: list[Reference]) -> Path:
    for split, references_there in by_split(references).items():
        rows = [benchmark_row(several) for several in by_image(references_there).values()]
        write_parquet(folder, f"refcoco_unc_{split}", rows, BENCHMARK)
    return Path(folder)


def write_questions(folder, references: list[Reference]) -> Path:
    theirs = {"train": "test", "val": "val", "testA": "testA", "testB": "testB"}  # some for its "test", by Google
    for split, references_there in by_split(references).items():
        rows = [question_row(reference, number) for number, reference in enumerate(references_there)]
        write_parquet(folder, theirs[split], rows, QUESTIONS)
    return Path(folder)


def write_cleaned(folder, references: list[Reference], split: str = "validation") -> Path:
    return write_parquet(folder, split, [cleaned_row(several) for several in by_image(references).values()], CLEANED)
