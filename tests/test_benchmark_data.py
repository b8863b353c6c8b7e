"""A set of RefCOCO's size is read in bounded memory and stored in bounded space. How fast is the benchmark's to say."""

import json

import pytest
from test_examples import run


def measured(*arguments) -> dict:
    lines = run(*arguments, module="m3dec.examples.benchmarks.benchmark_data", timeout=1800).splitlines()
    return {name: part for line in lines for name, part in json.loads(line).items()}


def check(figures: dict, references: int, sentences: int) -> None:
    for part in ("from cache", "prepared, from cache"):
        assert (figures[part]["references"], figures[part]["sentences"]) == (references, sentences)


@pytest.mark.slow
def test_the_benchmark_measures_every_part():
    size = ("--references", "300", "--sentences", "800", "--images", "120", "--parts", "large", "loader")
    figures = measured(*size, "--loader_images", "16", "--rounds", "1")
    check(figures["large"], 300, 800)
    assert {"plain loop", "loader, 0 workers", "loader, 2 workers"} == figures["loader"]["images a second"].keys()


@pytest.mark.slow
def test_a_set_of_refcocos_size_is_read_in_200_mb_and_stored_in_little_more_than_its_images():
    figures = measured("--parts", "large")["large"]
    check(figures, 42_404, 120_624)
    assert all(figures[part]["grown, MB"] < 200 for part in ("from cache", "prepared, from cache"))
    assert figures["parquet to images"] < 1.1


def test_the_benchmark_of_generated_sentences_measures_work_and_memory():
    size = ("--coco_images", "24", "--coco_annotations", "150", "--coco_files", "12")
    result = measured("--parts", "generated", *size)["generated"]
    assert 0 < result["seconds of work"] < 1800
    assert 50 < result["most memory, MB"] < 4000
    assert result["summary"]["train"]["kinds"]["nothing"] > 0
