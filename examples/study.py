"""Tables I, II and III of § IV-B: train their rows with several seeds, and print them beside the paper's figures.

    python examples/study.py --tables 2 3 lfr blind --base examples/recipes/study_scenes.yaml --seeds 0 1 --at_once 2
    python examples/study.py --launcher "torchrun --standalone --nproc_per_node 4 -m" --data_root data \\
        --image_root data/train2014 --word_vectors glove.6B.300d.txt

The tables are in studies/tables.yaml. A row is a recipe of recipes/tables; --base puts another recipe under all of
them. Flags that are not the study's own go to train.py. Each run has a folder in output_dir; started again, the study
goes on with what is not finished, each run from its newest checkpoint. It writes tables.md, curves.png and, for each
run, result.json: the figures of its last step, not of its best.
"""

import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from m3dec.examples.training.parts import read_data
from m3dec.examples.training.recipe import RECIPES, read_recipe, recipe_of
from m3dec.examples.training.report import read_metrics, write_whole
from m3dec.examples.user_errors import exits_with_message

TITLES = {"miou": "IoU (mIoU)", "pr@0.5": "Pr@0.5", "pr@0.9": "Pr@0.9"}
STUDY = yaml.safe_load(Path(__file__).with_name("studies").joinpath("tables.yaml").read_text(encoding="utf-8"))
TABLES, OTHER_RUNS, PAPER = STUDY["tables"], STUDY["runs"], STUDY["paper"]


@dataclass
class StudyArguments:
    tables: list[str] = field(
        default_factory=lambda: ["1", "2", "3"],
        metadata={"help": "1, 2, 3: the paper's. extremes, keys, lfr (its targets), blind: ours."},
    )
    base: str | None = HfArg(default=None, help="A recipe to put under all rows. None: their own.")
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    output_dir: str = "outputs/study"
    at_once: int = HfArg(default=1, help="Runs side by side; they share the cores.")
    launcher: str = HfArg(default="", help='Such as "torchrun --nproc_per_node 4 -m". None: one process.')


@exits_with_message
def main(arguments: list[str] | None = None):
    parser = HfArgumentParser(StudyArguments, allow_abbrev=False)
    study, flags = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unknown := ", ".join(sorted(set(study.tables) - TABLES.keys())):
        raise SystemExit(f"--tables takes {', '.join(TABLES)}, but got {unknown}.")
    if any(flag.partition("=")[0] == "--seed" for flag in flags):
        raise SystemExit("A study trains with several seeds: give --seeds, not --seed.")
    output, tables = Path(study.output_dir), [TABLES[key] for key in study.tables]
    names = dict.fromkeys(name for table in tables for row in table["rows"].values() for name in row)
    try:
        recipes = {name: run_recipe(name, study.base) for name in names}
        parsed = [recipe_of(recipe, flags) for recipe in recipes.values()]  # an error, before anything is trained
        folders = {run_folder(output, name, seed): recipes[name] for seed in study.seeds for name in names}
        make_folders(folders, flags)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    read_data(parsed[0])  # drawn and cached once for all
    runs = [(name, seed) for seed in study.seeds for name in names]
    with ThreadPoolExecutor(study.at_once) as pool:
        finished = list(tqdm(pool.map(lambda run: train_run(*run, study, flags), runs), desc="runs", total=len(runs)))
    text = "\n\n".join(table_text(table, output, study.seeds) for table in tables)
    text += "\n\nThreshold 0.5; the paper's figures are on RefCOCO's val, probably at 0.35."
    (output / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    draw_curves(tables, output, study.seeds)
    if failed := [folder.name for folder, done in zip(folders, finished, strict=True) if not done]:
        raise SystemExit(f"Without a result: {', '.join(failed)}. Each has a train.log. Start again to go on.")


def run_folder(output: Path, name: str, seed: int) -> Path:
    return output / f"{name}-seed{seed}"


def make_folders(folders: dict[Path, dict], flags: list[str]) -> None:
    """Write into the folder of each run its recipe and the flags. A study that is refused writes nothing.

    Raises:
        ValueError: a folder is there, made by another recipe or other flags. Runs of two studies are never mixed.
    """
    for folder, recipe in folders.items():
        path = folder / "made_by.json"
        made_by = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        if folder.exists() and made_by != {"recipe": recipe, "flags": flags}:
            raise ValueError(
                f"{folder} is of another recipe or other flags. Choose another --output_dir, or delete it."
            )
    for folder, recipe in folders.items():
        write_text(json.dumps({"recipe": recipe, "flags": flags}, indent=2), folder / "made_by.json")
        write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), folder / "row.yaml")


def run_recipe(name: str, base: str | None) -> dict:
    """The whole recipe of a run: what it changes, over `base` or over what its own file is based on."""
    if name in OTHER_RUNS:
        under, changes = read_recipe(base or RECIPES / "refcoco_darknet53.yaml"), OTHER_RUNS[name]
    else:
        own = RECIPES / "tables" / f"{name}.yaml"
        changes = yaml.safe_load(own.read_text(encoding="utf-8"))
        under = read_recipe(base or own.parent / changes["base"])
        changes = {key: value for key, value in changes.items() if key not in ("base", "output_dir")}
    recipe = {"checkpointing_steps": 500, **under, **changes}  # so that a study can go on
    recipe["model"] = {**under.get("model", {}), **changes.get("model", {})}
    return recipe


def train_run(name: str, seed: int, study: StudyArguments, flags: list[str]) -> bool:
    """Train with a seed, or go on with it, in a process of its own; whether its result is there."""
    output = run_folder(Path(study.output_dir), name, seed)
    if (output / "result.json").exists():
        return True
    launcher = shlex.split(study.launcher) or [sys.executable, "-m"]
    command = [*launcher, "m3dec.examples.train", str(output / "row.yaml"), *flags]
    command += ["--seed", str(seed), "--output_dir", str(output), "--resume_from_checkpoint", "newest"]
    threads = str(max(1, (os.cpu_count() or 1) // study.at_once))
    with (output / "train.log").open("a", encoding="utf-8") as log:
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if ended.returncode == 0:
        write_text(json.dumps(evaluations(output)[-1], indent=2), output / "result.json")
    return ended.returncode == 0


def write_text(text: str, path: Path) -> None:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def evaluations(output: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl that hold scores."""
    return [line for line in read_metrics(output / "metrics.jsonl") if "figures" in line]


def results(name: str, output: Path, seeds: list[int]) -> list[dict[str, float]]:
    """The scores of the finished runs of this name."""
    found = [run_folder(output, name, seed) / "result.json" for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8"))["figures"]["all"] for path in found if path.exists()]


def table_text(table: dict, output: Path, seeds: list[int]) -> str:
    """A table as Markdown: each score as mean ± spread (half of largest minus smallest), and the paper's beside it."""
    header = [f"{column} {TITLES[score]}".strip() for column in table["columns"] for score in table["scores"]]
    lines = [["", *header, "seeds", "against Ours"], ["---"] * (len(header) + 3)]
    ours = [result["miou"] for result in results("ours", output, seeds)]
    for label, names in table["rows"].items():
        cells, counts, differences = [], [], []
        for column, name in zip(table["columns"], names, strict=True):
            found = results(name, output, seeds)
            counts.append(str(len(found)))
            if name != "ours":
                differences.append(f"{column} {difference([result['miou'] for result in found], ours)}".strip())
            paper = dict(zip(table["scores"], PAPER.get(name, ()), strict=False))
            for score in table["scores"]:
                published = f" (paper {paper[score]:.2f})" if score in paper else ""
                cells.append(mean_and_spread([100 * result[score] for result in found]) + published)
        lines.append([label, *cells, ", ".join(dict.fromkeys(counts)), ", ".join(differences)])
    return f"### {table['title']}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_and_spread(values: list[float]) -> str:
    if not values:
        return "no run"
    spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def difference(values: list[float], ours: list[float]) -> str:
    """How a row's mIoU compares with ours: undecided where the means differ by less than either's seeds do."""
    if len(values) < 2 or len(ours) < 2:
        return "undecided: one seed"
    between_means = 100 * (statistics.mean(values) - statistics.mean(ours))
    between_seeds = 100 * max(max(row) - min(row) for row in (values, ours))
    return "undecided" if abs(between_means) <= between_seeds else f"{between_means:+.2f}"


def draw_curves(tables: list[dict], output: Path, seeds: list[int]) -> None:
    """curves.png: the mIoU of each row over the steps, a thin line a seed, a panel a table."""
    figure = Figure(figsize=(5.2 * len(tables), 4.2), layout="constrained")
    for axes, table in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables, strict=True):
        cells = [
            (label, *cell)
            for label, names in table["rows"].items()
            for cell in zip(table["columns"], names, strict=True)
        ]
        colors = {label: f"C{number}" for number, label in enumerate(table["rows"])}
        for (label, column, name), seed in itertools.product(cells, seeds):
            metrics = run_folder(output, name, seed) / "metrics.jsonl"
            lines = evaluations(metrics.parent) if metrics.exists() else []
            steps, scores = [line["step"] for line in lines], [100 * line["figures"]["all"]["miou"] for line in lines]
            title = f"{label} {column}".strip()[:34] if seed == seeds[0] else None
            style = "-" if column == table["columns"][0] else "--"
            if steps:
                axes.plot(steps, scores, style, color=colors[label], lw=1, label=title)
        axes.set(title=table["title"], xlabel="step", ylabel="mIoU, percent")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(output / "curves.png", dpi=130)


if __name__ == "__main__":
    main()
