"""How long sentences from masks take, and how much memory: a stand-in for COCO's instances_train2017.json.

    python examples/benchmarks/benchmark_generated.py [--images 118287] [--annotations 860001] [--num_proc 2]

Everything is made in a temporary folder. The image entries point at a few hundred drawn files of 640 x 480 pixels.
Prints a line of JSON: seconds on the clock and of all processes' work, and the most memory that they had at one time.
"""

import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm
from transformers import HfArgumentParser

NAMES = ["person"] * 12 + [
    "car", "chair", "book", "bottle", "cup", "dining table", "bowl", "traffic light", "handbag", "umbrella", "bird",
    "boat", "truck", "bench", "sheep", "banana", "kite", "dog", "cat", "tie", "couch", "bicycle",
]  # fmt: skip
SIZE = (640, 480)


@dataclass
class BenchmarkArguments:
    images: int = field(default=118_287, metadata={"help": "Of train2017."})
    annotations: int = field(default=860_001, metadata={"help": "And its objects."})
    photographs: int = field(default=300, metadata={"help": "Files that the entries point at."})
    num_proc: int = 2
    num_shards: int = 8


def main():
    arguments = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()[0]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        size = write_stand_in(folder, arguments.images, arguments.annotations, arguments.photographs)
        print(json.dumps({"file, MB": round(size / 2**20, 1)} | measure(folder, arguments)))


def write_stand_in(folder: Path, images: int, annotations: int, photographs: int) -> int:
    """Write instances.json and images/ into `folder`; returns the size of the first in bytes."""
    draw, (width, height) = random.Random(0), SIZE
    (folder / "images").mkdir()
    for number in range(photographs):
        generator = np.random.default_rng(number)
        coarse = generator.integers(0, 256, (height // 60, width // 60, 3), dtype=np.uint8)
        fine = generator.integers(-10, 11, (height, width, 1))
        picture = np.asarray(Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC)) + fine
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "images" / f"{number}.jpg", quality=80)
    categories = sorted(set(NAMES))
    with (folder / "instances.json").open("w", encoding="utf-8") as file:
        file.write('{"info": {}, "images": [')
        for number in range(images):
            entry = {"id": number, "file_name": f"{number % photographs}.jpg", "height": height, "width": width}
            file.write(",\n" * bool(number) + json.dumps(entry))
        file.write('], "annotations": [')
        for number in tqdm(range(annotations), desc="drawing polygons"):
            x, y, radius = draw.uniform(0, width), draw.uniform(0, height), height * 0.02 * 15 ** draw.random()
            angles = sorted(draw.uniform(0, 6.28) for _ in range(30))
            points = [(x + radius * np.cos(a), y + radius * np.sin(a)) for a in angles]
            outline = [round(c, 2) for px, py in points for c in (min(max(px, 0), width), min(max(py, 0), height))]
            entry = {"id": number, "image_id": draw.randrange(images), "segmentation": [outline]}
            entry |= {"category_id": categories.index(draw.choice(NAMES)), "iscrowd": int(draw.random() < 0.01)}
            file.write(",\n" * bool(number) + json.dumps(entry | {"area": radius**2, "bbox": [x, y, radius, radius]}))
        named = [{"id": number, "name": name} for number, name in enumerate(categories)]
        file.write('], "categories": ' + json.dumps(named) + "}")
    return (folder / "instances.json").stat().st_size


def measure(folder: Path, arguments: BenchmarkArguments) -> dict[str, float]:
    """What prepare_data.py takes for the stand-in in `folder`."""
    flags = ["--sentences", "generated", "--instances", folder / "instances.json", "--image_root", folder / "images"]
    flags += ["--num_proc", arguments.num_proc, "--num_shards", arguments.num_shards, "--output_dir", folder / "out"]
    command = [sys.executable, "-m", "m3dec.examples.prepare_data", *map(str, flags)]
    start, most, done = time.perf_counter(), [0], threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        watch = threading.Thread(target=watch_memory, args=(process.pid, most, done))
        watch.start()
        output, _ = process.communicate()
        done.set()
        watch.join()
    if process.returncode:
        raise SystemExit(output)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    shards = sum(path.stat().st_size for path in (folder / "out" / "data").iterdir())
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "seconds of work": round(used.ru_utime + used.ru_stime, 1),
        "most memory, MB": round(most[0] / 1024),
        "shards, MB": round(shards / 2**20),
        "summary": json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8")),
    }


def watch_memory(root: int, most: list[int], done: threading.Event) -> None:
    """Note in `most` the most memory in KB that a process and its children had, what they share counted once."""
    while not done.wait(0.5):
        most[0] = max(most[0], sum(map(proportional_memory, family_of(root))))


def family_of(process: int) -> list[int]:
    """A process and all that it started, by their numbers."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []
    return [process, *(one for child in children for one in family_of(int(child)))]


def proportional_memory(process: int) -> int:
    """In KB; memory that n processes share counts as an nth of itself."""
    try:
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    except OSError:
        pass  # it has ended
    return 0


if __name__ == "__main__":
    main()
