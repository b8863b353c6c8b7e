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
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from m3dec.examples.benchmarks.stand_ins import annotation, write_instances, write_photograph

NAMES = ["person"] * 12 + [
    "car", "chair", "book", "bottle", "cup", "dining table", "bowl", "traffic light", "handbag", "umbrella", "bird",
    "boat", "truck", "bench", "sheep", "banana", "kite", "dog", "cat", "tie", "couch", "bicycle",
]  # fmt: skip
SIZE = (640, 480)


@dataclass
class BenchmarkArguments:
    images: int = HfArg(default=118_287, help="Of train2017.")
    annotations: int = HfArg(default=860_001, help="And its objects.")
    photographs: int = HfArg(default=300, help="Files that the entries point at.")
    num_proc: int = 2
    num_shards: int = 8


def main():
    (arguments,) = HfArgumentParser(BenchmarkArguments).parse_args_into_dataclasses()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_stand_in(folder, arguments)
        size = (folder / "instances.json").stat().st_size
        print(json.dumps({"file, MB": round(size / 2**20, 1)} | measure(folder, arguments)))


def write_stand_in(folder: Path, arguments: BenchmarkArguments) -> None:
    """Write instances.json and images/ into `folder`."""
    (folder / "images").mkdir()
    for number in range(arguments.photographs):
        write_photograph(folder / "images" / f"{number}.jpg", number, SIZE, cell=60, quality=80)
    names = [f"{number % arguments.photographs}.jpg" for number in range(arguments.images)]
    entries = ({"id": n, "file_name": name, "height": SIZE[1], "width": SIZE[0]} for n, name in enumerate(names))
    write_instances(folder / "instances.json", entries, annotations(arguments), sorted(set(NAMES)))


def annotations(arguments: BenchmarkArguments) -> Iterator[dict]:
    """Objects of very different sizes on random images; one in a hundred is a crowd."""
    rng, categories = random.Random(0), sorted(set(NAMES))
    for number in tqdm(range(arguments.annotations), desc="drawing polygons"):
        category, radius = categories.index(rng.choice(NAMES)), SIZE[1] * 0.02 * 15 ** rng.random()
        entry = annotation(rng, number, rng.randrange(arguments.images), category, SIZE, radius, corners=30)
        yield entry | {"iscrowd": int(rng.random() < 0.01)}


def measure(folder: Path, arguments: BenchmarkArguments) -> dict[str, float]:
    """What prepare_data.py takes for the stand-in in `folder`."""
    flags = ["--sentences", "generated", "--instances", folder / "instances.json", "--image_root", folder / "images"]
    flags += ["--num_proc", arguments.num_proc, "--num_shards", arguments.num_shards, "--output_dir", folder / "out"]
    command = [sys.executable, "-m", "m3dec.examples.prepare_data", *map(str, flags)]
    start, most = time.perf_counter(), 0
    with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=subprocess.DEVNULL) as process:
        while True:
            try:
                process.wait(timeout=0.5)
                break
            except subprocess.TimeoutExpired:
                most = max(most, memory_of(psutil.Process(process.pid)))
    if process.returncode:
        raise SystemExit((folder / "log").read_text())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    shards = sum(path.stat().st_size for path in (folder / "out" / "data").iterdir())
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "seconds of work": round(used.ru_utime + used.ru_stime, 1),
        "most memory, MB": round(most / 2**20),
        "shards, MB": round(shards / 2**20),
        "summary": json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8")),
    }


def memory_of(program: psutil.Process) -> int:
    """Bytes that a process and all that it started have; memory that they share counts once."""
    total = 0
    for process in [program, *program.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue  # it has ended
    return total


if __name__ == "__main__":
    main()
