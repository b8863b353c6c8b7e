"""What the benchmarks share: contestants by turns, each in a process of its own, and tables that say where and of what
they were measured.

A contestant is a function that a process calls once, to prepare. What it returns is called in each round, and returns
its figures by name, or None, and then its seconds count. Contestants are at the top of a module, so that they pickle.
"""

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path

import torch
from tqdm import tqdm

INSTRUCTION_SETS = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
current: list[Callable] = []  # in a contestant's process, its call


def by_turns(
    contestants: dict[str, Callable[[], Callable]], rounds: int, threads: int
) -> dict[str, dict[str, list[float]]]:
    """The figures of each contestant, by their names, one for each round. One round before, not counted, warms up.

    A round calls every contestant once, so that other programs on the machine slow down all alike. While one is called,
    the others wait; none shares its threads with another.
    """
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TQDM_DISABLE": "1"}  # of the processes that start below
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(
                ProcessPoolExecutor(1, get_context("spawn"), initializer=start, initargs=(prepare, threads))
            )
            for name, prepare in contestants.items()
        }
        turns = [
            {name: process.submit(figures).result() for name, process in processes.items()}
            for _ in tqdm(range(1 + rounds), desc="measuring", unit="round", leave=False)
        ][1:]
    return {name: {key: [turn[name][key] for turn in turns] for key in turns[0][name]} for name in contestants}


def start(prepare: Callable[[], Callable], threads: int) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    current.append(prepare())


def figures() -> dict[str, float]:
    begin = time.perf_counter()
    found = current[0]()
    return {"seconds": time.perf_counter() - begin} if found is None else found


def in_fresh_process(function: Callable, *arguments):
    """What a function of a module returns in a process that has done nothing else."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def memory(name: str) -> float:
    """Of this process, in MB: VmRSS is what it has now, VmHWM the most that it had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def cell(values: list[float], scale: float = 1000, spread: bool = False) -> str:
    """The median of seconds as milliseconds, or at another scale; with `spread` the least and the most in brackets."""
    middle, *ends = (number(scale * of(values)) for of in (statistics.median, min, max))
    return f"{middle} ({'–'.join(ends)})" if spread else middle


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def publish(name: str, header: str, rows: list[list[str]], rounds: int, threads: int, page: Path | None) -> None:
    """Print a table with a line about the machine; write it into a page, between `<!-- name -->` and `<!-- /name -->`.

    Args:
        header: the names of the columns, with " | " between them.
        page: None to print alone.
    """
    names = header.split(" | ")
    lines = [f"| {' | '.join(cells)} |" for cells in (names, ["---"] * len(names), *rows)]
    text = "\n".join([*lines, "", f"{rounds} rounds after one that warms up, {threads} threads. {machine()}"])
    print(text)
    if page is not None:
        before, opening, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name} -->\n")
        _, closing, after = rest.partition(f"<!-- /{name} -->\n")
        if not closing:
            raise SystemExit(f"A table goes between <!-- {name} --> and <!-- /{name} -->; {page} lacks these lines.")
        page.write_text(f"{before}{opening}\n{text}\n\n{closing}{after}", encoding="utf-8")


def machine() -> str:
    """The CPU and what it can do, the versions that matter, and the commit, or the version where there is no git."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch that m3dec takes
    sets = ", ".join(name for name in INSTRUCTION_SETS if able.get(name))
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "onnxruntime") if find_spec(name)]
    command = "git describe --always && (git diff --quiet HEAD -- ':/*.py' || echo with changes)"
    git = subprocess.run(command, shell=True, cwd=Path(__file__).parent, capture_output=True, text=True).stdout.split()
    commit = " ".join(["commit", *git]) if git else f"m3dec {version('m3dec')}"
    cpu = able.get("cpu_name", platform.machine())
    return f"{cpu} ({sets}), {os.cpu_count()} cores; {', '.join(versions)}; {commit}."
