"""What the benchmarks share: calls that are timed by turns, and a process of its own to measure something in."""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from tqdm import tqdm


def by_turns(calls: dict[str, Callable], rounds: int) -> tuple[dict[str, list[float]], dict]:
    """The seconds of each call in each round, and what each call returned in the last round.

    A round makes every call once, so that other programs on the machine slow down all calls alike.
    """
    seconds, results = {name: [] for name in calls}, {}
    for _ in tqdm(range(rounds), desc="measuring", unit="round", leave=False):
        for name, call in calls.items():
            start = time.perf_counter()
            results[name] = call()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def in_fresh_process(function: Callable, *arguments):
    """What a function of a module returns in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()
