"""The tables of docs/speed.md: each command writes one that is whole, of contestants that have a process each."""

import os
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from test_examples import run

from m3dec.examples.benchmarks.benchmark_inference import TABLES
from m3dec.examples.benchmarks.timing import by_turns, publish
from m3dec.hub import SCENES_CHECKPOINT
from m3dec.hub.runtimes.export_onnx import PACKAGES

SPEED = Path(__file__).parent.parent / "docs" / "speed.md"
CELL = re.compile(r"(\d+(\.\d+)?|[\d.]+ \([\d.]+–[\d.]+\)|–)$")


def contestant(name: float) -> Callable[[], dict[str, float]]:
    calls = []

    def call() -> dict[str, float]:
        calls.append(time.time())
        return {"process": os.getpid(), "calls": len(calls), "threads": torch.get_num_threads(), "at": time.time()}

    return call


def test_contestants_have_a_process_each_and_take_turns_after_one_round_that_does_not_count():
    found = by_turns({name: partial(contestant, name) for name in ("a", "b")}, rounds=3, threads=1)
    (first,), (second,) = ({*figures["process"]} for figures in found.values())
    assert len({first, second, os.getpid()}) == 3
    assert all(figures["calls"] == [2, 3, 4] and figures["threads"] == [1, 1, 1] for figures in found.values())
    times = [at for turn in zip(found["a"]["at"], found["b"]["at"], strict=True) for at in turn]
    assert times == sorted(times)


def test_a_table_replaces_what_stands_between_its_marks_and_nothing_else(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- other -->\nx\n<!-- /other -->\n<!-- one -->\nold\n<!-- /one -->\nafter\n")
    for _ in range(2):
        publish("one", "name | ms", [["a", "1.5"]], rounds=10, threads=2, page=page)
        head, tail = page.read_text().split("\n<!-- one -->\n\n| name | ms |\n| --- | --- |\n| a | 1.5 |\n\n")
        assert head == "before\n<!-- other -->\nx\n<!-- /other -->"
        assert re.fullmatch(r"10 rounds .*2 threads\. .*torch [\d.]+.*; commit \w+.*\.\n\n<!-- /one -->\nafter\n", tail)
    assert "| a | 1.5 |" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="<!-- two -->"):
        publish("two", "name | ms", [], rounds=10, threads=2, page=page)


def table(name: str, page: Path, *flags: str) -> list[list[str]]:
    """The rows that the program writes into a page, for the tiny checkpoint; every cell but the first is a figure."""
    page.write_text(f"<!-- {name} -->\n<!-- /{name} -->\n")
    given = (name, "--rounds", "2", "--threads", "1", "--model", SCENES_CHECKPOINT, "--page", page, *flags)
    run(*given, module="m3dec.examples.benchmarks.benchmark_inference", timeout=1800)
    lines = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("|")]
    header, _, *rows = lines
    assert all(len(row) == len(header) and all(map(CELL.match, row[1:])) for row in rows)
    return rows


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rows"), [("photograph", 6), ("start", 4), ("images", 2)])
def test_a_command_writes_its_whole_table(name, rows, tmp_path):
    assert len(table(name, tmp_path / "page.md", *(("--images", "32") if name == "images" else ()))) == rows


def test_models_are_chosen_by_words_of_their_names(tmp_path):
    (fused,) = table("models", tmp_path / "page.md", "--only", "bfloat16")
    assert fused[0] == f"{SCENES_CHECKPOINT.name}, fused, bfloat16"


@pytest.mark.slow
def test_every_kind_of_model_is_measured(tmp_path):
    for package in PACKAGES:
        pytest.importorskip(package)
    rows = table("models", tmp_path / "page.md")
    assert len({row[0] for row in rows}) == 6 + 2 + 3
    assert all(float(row[-1]) > 0 for row in rows)


def test_the_page_has_a_place_and_the_command_for_each_table():
    page = SPEED.read_text(encoding="utf-8")
    for name in TABLES:
        assert page.count(f"<!-- {name} -->\n") == page.count(f"<!-- /{name} -->\n") == 1
        assert f"benchmark_inference.py {name}" in page
