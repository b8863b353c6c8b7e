"""How long data take: a synthetic set of RefCOCO's size, the training loader beside a plain loop, and expressions from
masks for a stand-in for COCO's instances_train2017.json, with the memory that these take.

    python examples/benchmarks/benchmark_data.py [--parts large loader generated] [--references 42404] [...]

Everything is made in a temporary folder and measured in fresh processes: drawn noise in place of photographs, and round
polygons. Prints a line of JSON for each part.
"""

import json
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as transforms
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from m3dec import M3DecImageProcessor, M3DecProcessor
from m3dec.examples.benchmarks.timing import by_turns, in_fresh_process, memory
from m3dec.examples.training.parts import collate
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared
from m3dec.processing.referring_data.sampling import ReferringExamples
from m3dec.processing.word_vectors import word_tokenizer

WORDS = ["the", "a", "man", "woman", "left", "right", "red", "blue", "dog", "cat", "chair", "second", "holding", "hat"]
NAMES = ["person"] * 12 + [
    "car", "chair", "book", "bottle", "cup", "dining table", "bowl", "traffic light", "handbag", "umbrella", "bird",
    "boat", "truck", "bench", "sheep", "banana", "kite", "dog", "cat", "tie", "couch", "bicycle",
]  # fmt: skip
SIDE = 416  # of the model's input in the loader's measurements
SIZE = (640, 480)


@dataclass
class BenchmarkArguments:
    parts: list[str] = field(default_factory=lambda: ["large", "loader", "generated"])
    references: int = HfArg(default=42_404, help="RefCOCO's training split has 42,404.")
    sentences: int = HfArg(default=120_624, help="And 120,624 of these.")
    images: int = HfArg(default=16_994, help="And 16,994 of these.")
    loader_images: int = HfArg(default=800, help="640 x 480 images for the loader.")
    rounds: int = HfArg(default=5, help="Of the loader's measurements; the fastest counts.")
    coco_images: int = HfArg(default=118_287, help="Of train2017.")
    coco_annotations: int = HfArg(default=860_001, help="And its objects.")
    coco_files: int = HfArg(default=300, help="Drawn files that these images point at.")


def main():
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()
    for part in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps({part: PARTS[part](arguments, Path(folder))}))


# A set of RefCOCO's size


def measure_large_set(arguments: BenchmarkArguments, root: Path) -> dict:
    """First load, then from the cache with an iteration, of the official files and of prepared shards; their size."""
    write_set(root, arguments.references, arguments.sentences, arguments.images, (128, 96), quality=75)
    refer = {"source": "refer", "root": str(root), "dataset": "large", "split_by": "unc"}
    prepared = {"source": "prepared", "root": str(root / "prepared")}
    result = {"first": in_fresh_process(load, refer, False), "from cache": in_fresh_process(load, refer, True)}
    start = time.perf_counter()
    write_prepared(load_referring_dataset(**refer), root / "prepared", num_shards=8)
    result["preparing, seconds"] = round(time.perf_counter() - start, 1)
    result["prepared, first"] = in_fresh_process(load, prepared, False)
    result["prepared, from cache"] = in_fresh_process(load, prepared, True)
    images, shards = size_of(root / "large" / "images"), size_of(root / "prepared" / "data")
    return result | {"images, MB": images, "parquet to images": shards / images}


def write_set(root: Path, references: int, sentences: int, images: int, size: tuple[int, int], quality: int) -> None:
    """Write `root/large`: the official layout of a training split, with drawn noise in place of photographs."""
    rng, folder = random.Random(0), root / "large"
    (folder / "images").mkdir(parents=True)
    entries = []
    for number in tqdm(range(images), desc="drawing", unit="image"):
        name = f"COCO_train2014_{number:012d}.jpg"
        write_photograph(folder / "images" / name, number, size, cell=16, quality=quality)
        entries.append({"id": number, "file_name": name, "height": size[1], "width": size[0]})
    radii = (rng.uniform(0.05, 0.3) * size[1] for _ in range(references))
    annotations = (annotation(rng, n, n % images, 0, size, radius, corners=24) for n, radius in enumerate(radii))
    write_instances(folder / "instances.json", entries, annotations, ["thing"])
    refs = []
    for ref_id in range(references):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 7))) for _ in range(sentences // references)]
        texts += ["the thing"] * (ref_id < sentences % references)
        pairs = [(10 * ref_id + number, text) for number, text in enumerate(texts)]
        said = [{"raw": text, "sent": text, "sent_id": sent_id, "tokens": text.split()} for sent_id, text in pairs]
        ref = {"ref_id": ref_id, "ann_id": ref_id, "image_id": ref_id % images, "category_id": 0, "split": "train"}
        refs.append(ref | {"file_name": "", "sent_ids": [sent_id for sent_id, _ in pairs], "sentences": said})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))


def load(options: dict, iterate: bool) -> dict:
    """What loading a set, and going through it, takes of time and of this process's memory."""
    before, start = memory("VmRSS"), time.perf_counter()
    train = load_referring_dataset(**options)["train"]
    result = {"load, seconds": round(time.perf_counter() - start, 2), "references": len(train), "sentences": 0}
    if iterate:
        start = time.perf_counter()
        for row in train:
            result["sentences"] += len(row["sentences"])
            row["image"].load()
        result |= {"iterate, seconds": round(time.perf_counter() - start, 1), "grown, MB": memory("VmHWM") - before}
    return result


# The training loader


def measure_loader(arguments: BenchmarkArguments, root: Path) -> dict:
    """Images a second of a plain loop and of the training loader, one reference an image."""
    images = arguments.loader_images
    write_set(root, images, 3 * images, images, SIZE, quality=90)
    contestants = {"plain loop": partial(plain_loop, root)}
    contestants |= {f"loader, {workers} workers": partial(loader, root, workers) for workers in (0, 2)}
    measured = by_turns(contestants, arguments.rounds, threads=1)
    rates = {name: round(images / min(found["seconds"]), 1) for name, found in measured.items()}
    ratios = {f"{name} to plain loop": round(rates[name] / rates["plain loop"], 2) for name in list(rates)[1:]}
    return {"images a second": rates} | ratios


def plain_loop(root: Path) -> Callable[[], None]:
    def go_through():
        for path in paths:
            transforms.resize(Image.open(path).convert("RGB"), [SIDE, SIDE])

    paths = sorted((root / "large" / "images").iterdir())
    return go_through


def loader(root: Path, workers: int) -> Callable[[], None]:
    def go_through():
        for batch in batches:
            assert batch["labels"].shape[1:] == (SIDE, SIDE)

    train = load_referring_dataset("refer", root=root, dataset="large", split_by="unc")["train"]
    processor = M3DecProcessor(M3DecImageProcessor(size={"height": SIDE, "width": SIDE}), word_tokenizer(WORDS))
    settings = {"num_workers": workers, "persistent_workers": workers > 0, "batch_size": 8}
    batches = DataLoader(ReferringExamples(train), collate_fn=partial(collate, processor=processor), **settings)
    return go_through


# Expressions from masks


def measure_generated(arguments: BenchmarkArguments, root: Path) -> dict:
    """What prepare_data.py takes: seconds on the clock and of all processes' work, and their memory at one time."""
    write_coco(root, arguments)
    flags = ["--sentences", "generated", "--instances", root / "instances.json", "--image_root", root / "images"]
    flags += ["--num_proc", 2, "--num_shards", 8, "--output_dir", root / "out"]
    command = [sys.executable, "-m", "m3dec.examples.prepare_data", *map(str, flags)]
    start, most = time.perf_counter(), 0
    with (root / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(0.5)
            most = max(most, memory_of(process.pid))
    if process.returncode:
        raise SystemExit((root / "log").read_text())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "file, MB": size_of(root / "instances.json"),
        "seconds": round(time.perf_counter() - start, 1),
        "seconds of work": round(used.ru_utime + used.ru_stime, 1),
        "most memory, MB": round(most / 2**20),
        "shards, MB": size_of(root / "out" / "data"),
        "summary": json.loads((root / "out" / "summary.json").read_text(encoding="utf-8")),
    }


def write_coco(root: Path, arguments: BenchmarkArguments) -> None:
    """Write instances.json and images/: objects of very different sizes; one in a hundred is a crowd."""

    def objects() -> Iterable[dict]:
        for number in tqdm(range(arguments.coco_annotations), desc="drawing polygons"):
            category, radius = categories.index(rng.choice(NAMES)), SIZE[1] * 0.02 * 15 ** rng.random()
            image_id = rng.randrange(arguments.coco_images)
            entry = annotation(rng, number, image_id, category, SIZE, radius, corners=30)
            yield entry | {"iscrowd": int(rng.random() < 0.01)}

    rng, categories = random.Random(0), sorted(set(NAMES))
    (root / "images").mkdir()
    for number in range(arguments.coco_files):
        write_photograph(root / "images" / f"{number}.jpg", number, SIZE, cell=60, quality=80)
    names = (f"{number % arguments.coco_files}.jpg" for number in range(arguments.coco_images))
    entries = ({"id": n, "file_name": name, "height": SIZE[1], "width": SIZE[0]} for n, name in enumerate(names))
    write_instances(root / "instances.json", entries, objects(), categories)


def memory_of(pid: int) -> int:
    """Bytes that a process and all that it started have; memory that they share counts once."""
    total, program = 0, psutil.Process(pid)
    for process in [program, *program.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it has ended
            total += process.memory_full_info().pss
    return total


def size_of(path: Path) -> float:
    """Of a file, or of the files of a folder, in MB."""
    return sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path])) / 2**20


# In place of photographs and of COCO's masks


def write_photograph(path: Path, number: int, size: tuple[int, int], cell: int, quality: int) -> None:
    """Write a JPEG file that compresses about as a photograph does: smooth cells of `cell` pixels, and grain."""
    rng, (width, height) = np.random.default_rng(number), size
    coarse = rng.integers(0, 256, (height // cell + 1, width // cell + 1, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    image = image + rng.integers(-12, 13, (height, width, 1))
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(path, quality=quality)


def annotation(
    rng: random.Random, number: int, image_id: int, category_id: int, size: tuple[int, int], radius: float, corners: int
) -> dict:
    """An annotation of COCO's with a polygon around a random place."""
    width, height = size
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    angles = sorted(rng.uniform(0, 6.28) for _ in range(corners))
    points = [(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles]
    outline = [round(c, 2) for px, py in points for c in (min(max(px, 0), width), min(max(py, 0), height))]
    box = [x - radius, y - radius, 2 * radius, 2 * radius]
    keys = {"id": number, "image_id": image_id, "category_id": category_id, "iscrowd": 0}
    return keys | {"area": radius**2, "bbox": box, "segmentation": [outline]}


def write_instances(path: Path, images: Iterable[dict], annotations: Iterable[dict], names: list[str]) -> None:
    """Write an instances file of COCO's, entry by entry: that of train2017 would take gigabytes of memory."""
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    with path.open("w", encoding="utf-8") as file:
        file.write(f'{{"info": {{}}, "categories": {json.dumps(categories)}')
        for key, entries in (("images", images), ("annotations", annotations)):
            file.write(f', "{key}": [')
            for number, entry in enumerate(entries):
                file.write(",\n" * bool(number) + json.dumps(entry))
            file.write("]")
        file.write("}")


PARTS = {"large": measure_large_set, "loader": measure_loader, "generated": measure_generated}

if __name__ == "__main__":
    main()
