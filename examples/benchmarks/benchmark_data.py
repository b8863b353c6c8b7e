"""How long data take: a synthetic set of RefCOCO's size, and the training loader beside a plain loop.

    python examples/benchmarks/benchmark_data.py [--references 42404] [--images 16994] [--loader_images 300]

Everything is made in a temporary folder and measured in fresh processes. Prints a line of JSON for each part.
"""

import functools
import io
import json
import pickle
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as transforms
from tqdm import tqdm
from transformers import HfArgumentParser

from m3dec import M3DecImageProcessor, M3DecProcessor
from m3dec.examples.training.parts import collate
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared
from m3dec.processing.referring_data.sampling import ReferringExamples
from m3dec.processing.referring_data.schema import decode_mask
from m3dec.processing.word_vectors import word_tokenizer

WORDS = ["the", "a", "man", "woman", "left", "right", "red", "blue", "dog", "cat", "chair", "second", "holding", "hat"]


@dataclass
class BenchmarkArguments:
    references: int = field(default=42_404, metadata={"help": "RefCOCO's training split has 42,404."})
    sentences: int = field(default=120_624, metadata={"help": "And 120,624 of these."})
    images: int = field(default=16_994, metadata={"help": "And 16,994 of these."})
    loader_images: int = field(default=800, metadata={"help": "640 x 480 pictures for the loader."})
    repeats: int = field(default=5, metadata={"help": "Of the loader's measurements; the fastest counts."})


def main():
    arguments = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()[0]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_set(folder, arguments.references, arguments.sentences, arguments.images, size=(128, 96), quality=75)
        print(json.dumps({"large set": measure_large_set(folder)}))
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_set(folder, arguments.loader_images, 3 * arguments.loader_images, arguments.loader_images, (640, 480))
        print(json.dumps({"loader": measure_loader(folder, arguments.repeats)}))


def write_set(root: Path, references: int, sentences: int, images: int, size: tuple[int, int], quality: int = 90):
    """Write `root/large`: the official layout of a training split with drawn noise for pictures."""
    rng, (width, height) = random.Random(0), size
    folder = root / "large"
    (folder / "images").mkdir(parents=True)
    instances = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing"}]}
    for number in tqdm(range(images), desc="drawing", unit="image"):
        name = f"COCO_train2014_{number:012d}.jpg"
        noise = np.random.default_rng(number).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
        fine = np.random.default_rng(number).integers(-12, 13, (height, width, 1))
        picture = np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)) + fine
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / name, quality=quality)
        instances["images"].append({"id": number, "file_name": name, "height": height, "width": width})
    refs = []
    for ref_id in range(references):
        x, y, radius = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.05, 0.3) * height
        angles = sorted(rng.uniform(0, 6.28) for _ in range(24))
        outline = [round(c, 2) for a in angles for c in (x + radius * np.cos(a), y + radius * np.sin(a))]
        box = [x - radius, y - radius, 2 * radius, 2 * radius]
        annotation = {"id": ref_id, "image_id": ref_id % images, "category_id": 1, "iscrowd": 0, "bbox": box}
        instances["annotations"].append(annotation | {"segmentation": [outline]})
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(2, 7))) for _ in range(sentences // references)]
        texts += ["the thing"] * (ref_id < sentences % references)
        said = [
            {"raw": text.capitalize(), "sent": text, "sent_id": 10 * ref_id + n, "tokens": text.split()}
            for n, text in enumerate(texts)
        ]
        ref = {"ref_id": ref_id, "ann_id": ref_id, "image_id": ref_id % images, "category_id": 1, "split": "train"}
        refs.append(ref | {"file_name": "", "sent_ids": [s["sent_id"] for s in said], "sentences": said})
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=2))
    (folder / "instances.json").write_text(json.dumps(instances), encoding="utf-8")


CHILD = """
import json, sys, time
import m3dec
from m3dec.processing.referring_data import load_referring_dataset

def memory(name):  # of this process, in MB
    for line in open("/proc/self/status"):
        if line.startswith(name):
            return int(line.split()[1]) / 1024

before, start = memory("VmRSS"), time.perf_counter()
train = load_referring_dataset(**json.loads(sys.argv[1]))["train"]
result = {"load, seconds": round(time.perf_counter() - start, 2), "references": len(train), "sentences": 0}
if sys.argv[2] == "iterate":
    start = time.perf_counter()
    for row in train:
        result["sentences"] += len(row["sentences"])
        row["image"].load()
    result |= {"iterate, seconds": round(time.perf_counter() - start, 1), "grown, MB": memory("VmHWM") - before}
print(json.dumps(result))
"""


def in_fresh_process(options: dict, task: str) -> dict:
    """What CHILD measures of `load_referring_dataset(**options)`, with "load" or "iterate"."""
    command = [sys.executable, "-c", CHILD, json.dumps(options), task]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure_large_set(root: Path) -> dict:
    """First load, then from the cache with an iteration, of the official files and of prepared shards; their size."""
    refer = {"source": "refer", "root": str(root), "dataset": "large", "split_by": "unc"}
    prepared = {"source": "prepared", "root": str(root / "prepared")}
    result = {"first": in_fresh_process(refer, "load"), "from cache": in_fresh_process(refer, "iterate")}
    start = time.perf_counter()
    write_prepared(load_referring_dataset(**refer), root / "prepared", num_shards=8)
    result["preparing, seconds"] = round(time.perf_counter() - start, 1)
    result["prepared, first"] = in_fresh_process(prepared, "load")
    result["prepared, from cache"] = in_fresh_process(prepared, "iterate")
    pictures = sum(path.stat().st_size for path in (root / "large" / "images").iterdir())
    shards = sum(path.stat().st_size for path in (root / "prepared" / "data").iterdir())
    return result | {"pictures, MB": pictures / 2**20, "parquet to pictures": shards / pictures}


def measure_loader(root: Path, repeats: int, size: int = 416) -> dict:
    """Pictures a second of a plain loop and of the training loader, one reference a picture, by turns in one run."""
    train = load_referring_dataset("refer", root=root, dataset="large", split_by="unc")["train"]
    paths = sorted((root / "large" / "images").iterdir())
    image_processor = M3DecImageProcessor(size={"height": size, "width": size})
    processor = M3DecProcessor(image_processor, word_tokenizer(WORDS))
    examples = ReferringExamples(train)

    def plain_loop():
        for path in paths:
            transforms.resize(Image.open(path).convert("RGB"), [size, size])

    def go_through(loader: DataLoader):
        for batch in loader:
            assert batch["labels"].shape[1:] == (size, size)

    parts = {"plain loop": plain_loop}
    for workers in (0, 2):
        settings = {"num_workers": workers, "persistent_workers": workers > 0, "batch_size": 8}
        loader = DataLoader(examples, collate_fn=functools.partial(collate, processor=processor), **settings)
        parts[f"loader, {workers} workers"] = functools.partial(go_through, loader)
    fastest = dict.fromkeys(parts, float("inf"))
    for _ in range(repeats):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            fastest[name] = min(fastest[name], time.perf_counter() - start)
    rates = {name: round(len(paths) / seconds, 1) for name, seconds in fastest.items()}
    ratios = {f"{name} to plain loop": round(rates[name] / rates["plain loop"], 2) for name in list(parts)[1:]}
    return (
        {"pictures a second": rates} | ratios | {"what it costs, ms a picture": cost_of_parts(paths, processor, train)}
    )


def cost_of_parts(paths: list[Path], processor: M3DecProcessor, train) -> dict[str, float]:
    """Where the time goes, one part after the other on one thread."""
    paths = paths[:50]
    data = [path.read_bytes() for path in paths]
    arrays = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in data]
    rows = [train[number] for number in range(len(paths))]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    masks = [decode_mask(row["mask"]) for row in rows]
    parts = {
        "decode JPEG": lambda n: Image.open(io.BytesIO(data[n])).convert("RGB"),
        "resize and normalize": lambda n: processor.image_processor(arrays[n]),
        "decode a mask": lambda n: decode_mask(rows[n]["mask"]),
        "resize a mask": lambda n: processor.image_processor(arrays[n][:8, :8], masks[n]),
        "tokenize an expression": lambda n: processor(text=rows[n]["sentences"][0]["sent"]),
    }
    costs = {}
    for name, part in parts.items():
        start = time.perf_counter()
        for number in range(len(paths)):
            part(number)
        costs[name] = round(1000 * (time.perf_counter() - start) / len(paths), 2)
    torch.set_num_threads(threads)
    return costs


if __name__ == "__main__":
    main()
