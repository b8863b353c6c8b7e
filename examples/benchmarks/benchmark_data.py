"""How long data take: a synthetic set of RefCOCO's size, and the training loader beside a plain loop.

    python examples/benchmarks/benchmark_data.py [--references 42404] [--images 16994] [--loader_images 300]

Everything is made in a temporary folder and measured in fresh processes. Prints a line of JSON for each part.
"""

import functools
import io
import json
import pickle
import random
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import functional as transforms
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from m3dec import M3DecImageProcessor, M3DecProcessor
from m3dec.examples.benchmarks.stand_ins import annotation, write_instances, write_photograph
from m3dec.examples.benchmarks.timing import by_turns, in_fresh_process
from m3dec.examples.training.parts import collate
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared
from m3dec.processing.referring_data.sampling import ReferringExamples
from m3dec.processing.referring_data.schema import decode_mask
from m3dec.processing.word_vectors import word_tokenizer

WORDS = ["the", "a", "man", "woman", "left", "right", "red", "blue", "dog", "cat", "chair", "second", "holding", "hat"]
SIDE = 416  # of the model's input in the loader's measurements


@dataclass
class BenchmarkArguments:
    references: int = HfArg(default=42_404, help="RefCOCO's training split has 42,404.")
    sentences: int = HfArg(default=120_624, help="And 120,624 of these.")
    images: int = HfArg(default=16_994, help="And 16,994 of these.")
    loader_images: int = HfArg(default=800, help="640 x 480 images for the loader.")
    repeats: int = HfArg(default=5, help="Of the loader's measurements; the fastest counts.")


def main():
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder), arguments.references, arguments.sentences, arguments.images, (128, 96), quality=75)
        print(json.dumps({"large set": measure_large_set(Path(folder))}))
    with tempfile.TemporaryDirectory() as folder:
        images = arguments.loader_images
        write_set(Path(folder), images, 3 * images, images, (640, 480), quality=90)
        print(json.dumps({"loader": measure_loader(Path(folder), arguments.repeats)}))


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


def memory(name: str) -> float:
    """Of this process, in MB: VmRSS is what it has now, VmHWM the most that it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def measure_large_set(root: Path) -> dict:
    """First load, then from the cache with an iteration, of the official files and of prepared shards; their size."""
    refer = {"source": "refer", "root": str(root), "dataset": "large", "split_by": "unc"}
    prepared = {"source": "prepared", "root": str(root / "prepared")}
    result = {"first": in_fresh_process(load, refer, False), "from cache": in_fresh_process(load, refer, True)}
    start = time.perf_counter()
    write_prepared(load_referring_dataset(**refer), root / "prepared", num_shards=8)
    result["preparing, seconds"] = round(time.perf_counter() - start, 1)
    result["prepared, first"] = in_fresh_process(load, prepared, False)
    result["prepared, from cache"] = in_fresh_process(load, prepared, True)
    images = sum(path.stat().st_size for path in (root / "large" / "images").iterdir())
    shards = sum(path.stat().st_size for path in (root / "prepared" / "data").iterdir())
    return result | {"images, MB": images / 2**20, "parquet to images": shards / images}


def measure_loader(root: Path, repeats: int) -> dict:
    """Images a second of a plain loop and of the training loader, one reference an image, by turns in one run."""
    train = load_referring_dataset("refer", root=root, dataset="large", split_by="unc")["train"]
    paths = sorted((root / "large" / "images").iterdir())
    image_processor = M3DecImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = M3DecProcessor(image_processor, word_tokenizer(WORDS))

    def plain_loop():
        for path in paths:
            transforms.resize(Image.open(path).convert("RGB"), [SIDE, SIDE])

    def go_through(loader: DataLoader):
        for batch in loader:
            assert batch["labels"].shape[1:] == (SIDE, SIDE)

    calls, collating = {"plain loop": plain_loop}, functools.partial(collate, processor=processor)
    for workers in (0, 2):
        settings = {"num_workers": workers, "persistent_workers": workers > 0, "batch_size": 8}
        loader = DataLoader(ReferringExamples(train), collate_fn=collating, **settings)
        calls[f"loader, {workers} workers"] = functools.partial(go_through, loader)
    seconds, _ = by_turns(calls, repeats)
    rates = {name: round(len(paths) / min(times), 1) for name, times in seconds.items()}
    ratios = {f"{name} to plain loop": round(rates[name] / rates["plain loop"], 2) for name in list(calls)[1:]}
    costs = cost_of_parts(paths[:50], processor, train)
    return {"images a second": rates} | ratios | {"what it costs, ms an image": costs}


def cost_of_parts(paths: list[Path], processor: M3DecProcessor, train) -> dict[str, float]:
    """Where the time goes: milliseconds an image, one part after the other on one thread."""
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
    calls = {name: lambda part=part: [part(number) for number in range(len(paths))] for name, part in parts.items()}
    seconds, _ = by_turns(calls, rounds=1)
    torch.set_num_threads(threads)
    return {name: round(1000 * time / len(paths), 2) for name, (time,) in seconds.items()}


if __name__ == "__main__":
    main()
