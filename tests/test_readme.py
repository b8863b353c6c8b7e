"""README and the pages of docs/: every block runs, every command is one that its program takes, every link leads
somewhere."""

import configparser
import csv
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import yaml
from loopback_hub import TOKENS, loopback_hub  # noqa: F401
from test_coco_files import write_the_pages_files
from test_examples import TINY

from m3dec.examples import PHOTOGRAPHS
from m3dec.examples.training.recipe import parse_recipe
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.scenes import write_scenes

REPOSITORY = Path(__file__).parent.parent
README = REPOSITORY / "README.md"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in [README, *sorted((REPOSITORY / "docs").glob("*.md"))]}
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
RUN = re.compile(r"`((?:m3dec |(?:python|torchrun|accelerate) [^`]*examples/)[^`…]+)`")  # within a sentence or a table
[M3DEC] = entry_points(group="console_scripts", name="m3dec")  # the command
TAKE_TRAINING_FLAGS = ("train", "study", "benchmarks.benchmark_training")
TAKE_NO_FLAGS = ("quickstart", "model_size")
OPTIONAL = ("onnxruntime", "gradio")  # packages of the extras, which not every machine has


def blocks(page: str, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(PAGES[page]) if name == language]


def section(title: str) -> str:
    return PAGES["README"].split(f"## {title}\n")[1].split("\n## ")[0]


def pages_with(language: str) -> list[str]:
    return [page for page in PAGES if blocks(page, language)]


def test_every_block_is_of_a_kind_that_a_test_runs():
    kinds = {(page, language) for page, text in PAGES.items() for language, _ in BLOCK.findall(text)}
    elsewhere = {("data", language) for language in ("text", "csv", "json", "jsonl", "yaml")}  # test_coco_files, and
    # test_generated_sentences for the YAML
    assert {kind for kind in kinds if kind[1] not in ("python", "sh")} == elsewhere | {("training", "yaml")}
    assert sum(text.count("\n```") for text in PAGES.values()) == 2 * sum(len(BLOCK.findall(t)) for t in PAGES.values())


# Python


@pytest.mark.parametrize("page", pages_with("python"))
def test_the_python_blocks_of_a_page_run_one_after_the_other(page, tmp_path, monkeypatch):
    if page == "training":
        pytest.importorskip("peft", reason="peft is not installed; it comes with the extra m3dec[adapters]")
    shutil.copytree(PHOTOGRAPHS, tmp_path / "examples" / "photographs")
    write_the_pages_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for code in blocks(page, "python"):
        exec(compile(code, page, "exec"), names)


def test_the_mixture_of_the_page_about_training_is_a_recipe(tmp_path):
    (text,) = blocks("training", "yaml")
    (tmp_path / "recipe.yaml").write_text(text, encoding="utf-8")
    assert len(parse_recipe([str(tmp_path / "recipe.yaml")]).sets) == 3


# Commands


def commands_of(page: str) -> list[list[str]]:
    """The words of each command: of the blocks, and of what stands in a sentence or a table."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in line.split(" && ")] + RUN.findall(BLOCK.sub("", PAGES[page]))
    words = [shlex.split(part.split(" > ")[0], comments=True) for part in parts]
    return [each for each in words if each and "examples/recipes/RECIPE" not in each]


def program_of(words: list[str]) -> tuple[str, str, list[str]]:
    """The module below m3dec.examples, its function, and the function's arguments."""
    if words[0] == "m3dec":
        module, function, _ = import_module(M3DEC.module).COMMANDS[words[1]]
        return module.removeprefix("m3dec.examples."), function, words[2:]
    assert words[0] in ("python", "torchrun", "accelerate"), words
    number = next(number for number, word in enumerate(words) if word.endswith(".py"))
    assert (REPOSITORY / words[number]).is_file()
    return ".".join(Path(words[number]).with_suffix("").parts[1:]), "main", words[number + 1 :]


class Accepted(BaseException):
    """A program took its arguments; it goes no further."""


def check_arguments(words: list[str], monkeypatch) -> None:
    name, function, arguments = program_of(words)
    if name in TAKE_NO_FLAGS:
        assert not arguments
        return
    parse, rest = ArgumentParser.parse_known_args, []

    def accept(parser, args=None, namespace=None):
        rest.extend(parse(parser, args, namespace)[1])
        raise Accepted

    with monkeypatch.context() as patch:
        if name == "train":
            rest = arguments
        else:
            patch.setattr(ArgumentParser, "parse_known_args", accept)
            patch.setattr(sys, "argv", [name, *arguments])
            try:
                program = getattr(import_module(f"m3dec.examples.{name}"), function)
            except ModuleNotFoundError as error:
                assert error.name in OPTIONAL
                return
            with pytest.raises((Accepted, SystemExit)) as ended:
                program()
            assert ended.type is Accepted or ended.value.code == 0  # --help
    if rest and "--help" not in rest:
        assert name in TAKE_TRAINING_FLAGS, rest
        parse_recipe(rest)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_is_one_that_its_program_takes(page, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    setup = configparser.ConfigParser()
    setup.read("setup.cfg", encoding="utf-8")
    commands = commands_of(page)
    assert commands
    for words in commands:
        if words[0] not in ("pip", "pytest", "hf"):
            check_arguments(words, monkeypatch)
    for extra in re.findall(r'pip install -e "\.\[(\w+)\]"', PAGES[page]):
        assert extra in setup["options.extras_require"]


def test_a_command_that_its_program_does_not_take_is_noticed(monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for command in (
        "m3dec evaluate --modle outputs/scenes/best",
        "m3dec push model folder",
        "m3dec predict a.jpg it --jsno",
        "python examples/train.py examples/recipes/scenes.yaml --model.hiden_size 3",
        "python examples/study.py --tabels 3",
        "python examples/no_program.py",
    ):
        with pytest.raises((AssertionError, ValueError, SystemExit)):
            check_arguments(shlex.split(command), monkeypatch)


# What has been done before the commands of a page, where the page does not say it.
BEFORE = {
    "evaluation": "m3dec train examples/recipes/scenes.yaml",
    "serving": """m3dec train examples/recipes/scenes.yaml
cp -r outputs/scenes outputs/your_data
m3dec prepare --output_dir outputs/my_data --num_shards 1""",
}
PROGRAMS = {  # what they start; those that install or test start nothing
    "python": f"exec {sys.executable}",
    "m3dec": f"exec {sys.executable} -m {M3DEC.module}",
    "torchrun": f"exec {sys.executable} -m torch.distributed.run --standalone",
    "hf": f"exec {sys.executable} -m huggingface_hub.cli.hf",
    "pip": "exit 0",
    "pytest": "exit 0",
}


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A folder like the repository's, with a tiny recipe in the place of each, photographs, and data called `my`."""
    for path in (REPOSITORY / "examples").iterdir():
        if path.name != "recipes":
            (tmp_path / "examples").mkdir(exist_ok=True)
            (tmp_path / "examples" / path.name).symlink_to(path)
    for path in (REPOSITORY / "examples" / "recipes").glob("**/*.yaml"):
        write_tiny_recipe(path, tmp_path / path.relative_to(REPOSITORY))
    (tmp_path / "hub").symlink_to(REPOSITORY / "hub")
    shutil.copytree(PHOTOGRAPHS, tmp_path / "photos", ignore=shutil.ignore_patterns("*.md"))
    words = [f"{word} {' '.join(f'{number / 8}' for number in range(8))}" for word in ("the", "red", "ring", "left")]
    (tmp_path / "glove.6B.300d.txt").write_text("\n".join(words), encoding="utf-8")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train2014").symlink_to(tmp_path / "data" / "scenes" / "images")
    write_my_data(tmp_path / "my")
    (tmp_path / "bin").mkdir()
    for name, line in PROGRAMS.items():
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\n{line} "$@"\n')
        script.chmod(0o755)
    return tmp_path


def write_tiny_recipe(path: Path, copy: Path) -> None:
    """The same names and the same data root as in the recipe at `path`; eight drawn scenes, two steps."""
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    tiny = {name: recipe[name] for name in ("output_dir", "model_name_or_path", "data_root") if recipe.get(name)}
    if path.stem == "your_data":
        tiny["source"] = "prepared"
    else:
        tiny |= {"dataset": "scenes", "split_by": "scenes", "scenes": {"train": 8, "val": 2, "test": 2}}
    tiny |= {"model": TINY, "max_train_steps": 2, "cpu": True}
    tiny |= {"per_device_train_batch_size": 4, "expressions_per_image": 2}
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(yaml.safe_dump(tiny), encoding="utf-8")


def write_my_data(my: Path) -> None:
    """A COCO file, images, a list of expressions, and the words of the page about data."""
    write_scenes(my.parent / "drawn", split_sizes={"train": 24, "val": 4})
    shutil.copytree(my.parent / "drawn" / "scenes" / "images", my / "images")
    shutil.copy(my.parent / "drawn" / "scenes" / "instances.json", my)
    splits = load_referring_dataset("refer", root=my.parent / "drawn", dataset="scenes", split_by="scenes")
    with (my / "expressions.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "expression", "annotation_id", "split"])
        for split, rows in splits.items():
            for row in rows.remove_columns("image"):
                table.writerow([row["file_name"], row["sentences"][0]["raw"], row["ann_id"][0], split])
    (my / "words.yaml").write_text("".join(blocks("data", "yaml")), encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("sh"))
def test_the_shell_blocks_of_a_page_run_one_after_the_other(page, checkout, hub):
    """As they stand, but with tiny recipes, drawn scenes for RefCOCO, two processes, and a double of the Hub."""
    code = "\n".join([BEFORE.get(page, ""), *blocks(page, "sh")])
    code = re.sub(r"--nproc_per_node \d+", "--nproc_per_node 2", code).replace("--mosaics 5000", "--mosaics 4")
    code = code.replace("--dataset refcoco --split_by unc", "--dataset scenes --split_by scenes")
    code = code.replace("hf auth login", f"hf auth login --token {TOKENS['owner']}")
    if importlib.util.find_spec("onnxruntime") is None:
        code = "\n".join(line for line in code.splitlines() if "--onnx" not in line)
    environment = {**hub.environment(checkout), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{checkout / 'bin'}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(["bash", "-exc", code], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    if "push model" in code:
        pushed = hub.repository("owner/name")
        assert pushed.private and pushed.at("v1").id == pushed.at().id and pushed.at().id in done.stdout
        assert {path.name for path in (checkout / "outputs" / "flat").iterdir()} <= {*pushed.files()}


# README


@pytest.mark.parametrize("title", ["Use it", "Train it", "Publish it"])
def test_the_first_block_of_each_section_has_less_than_ten_lines(title):
    block = BLOCK.search(section(title))[2]
    assert len([line for line in block.splitlines() if line.strip()]) < 10


def test_the_readme_says_how_to_install_and_test_in_two_commands():
    commands = [line for line in section("Install").splitlines() if line.startswith("pip install")]
    assert commands == ["pip install -e . && python examples/quickstart.py", 'pip install -e ".[test]" && pytest']


def test_the_readme_is_short():
    assert len(PAGES["README"].split()) <= 1300


# Links


TEXTS = sorted({README, *(path for path in REPOSITORY.glob("*.md"))}) + sorted(
    path for folder in ("docs", "examples", "hub", "processing") for path in (REPOSITORY / folder).glob("**/*.md")
)


def prose(path: Path) -> str:
    return BLOCK.sub("", path.read_text(encoding="utf-8"))


def anchors(path: Path) -> set[str]:
    """What a link to a heading is called, as GitHub makes it."""
    titles = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def dead_links(path: Path) -> list[str]:
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)|<img src=\"([^\"]+)\"", prose(path)):
        name, _, anchor = "".join(link).partition("#")
        if "://" in name:
            continue
        target = (path.parent / name).resolve() if name else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append("".join(link))
    return dead


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_link_of_a_text_leads_to_a_file_and_a_heading(path):
    assert dead_links(path) == []


def test_a_dead_link_is_noticed(tmp_path):
    (tmp_path / "a.md").write_text("# A b: c\n\n[x](a.md#a-b-c) [x](#a-b-c) [x](b.md) [x](a.md#gone)\n")
    assert dead_links(tmp_path / "a.md") == ["b.md", "a.md#gone"]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_the_repository_that_a_page_names_is_there(page):
    folders = "examples|hub|tests|docs|processing|modeling_m3dec|configuration"
    named = set(re.findall(rf"(?<![\w/.])(?:{folders})/[\w./-]+\w", PAGES[page])) - {"examples/recipes/RECIPE"}
    assert named
    assert [name for name in sorted(named) if not (REPOSITORY / name).exists()] == []
