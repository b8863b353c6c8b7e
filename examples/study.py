"""Tables I, II and III of § IV-B: train their rows with several seeds, and print them beside the paper's figures.

    python examples/study.py --tables 2 3 lfr blind --base examples/recipes/study_scenes.yaml --seeds 0 1 --at_once 2
    python examples/study.py --launcher "torchrun --standalone --nproc_per_node 4 -m" --data_root data \\
        --image_root data/train2014 --word_vectors glove.6B.300d.txt

A row is a recipe of examples/recipes/tables; --base puts another recipe under all of them. Flags that are not the
study's own go to train.py. Each run has a folder in output_dir; started again, the study goes on with what is not
finished, each run from its newest checkpoint. It writes tables.md, curves.png and, for each run, result.json: the
figures of its last step, not of its best.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from matplotlib.figure import Figure
from tqdm import tqdm
from transformers import HfArgumentParser

from m3dec.examples.training.parts import read_data
from m3dec.examples.training.recipe import RECIPES, TrainingRecipe, parse_recipe, read_recipe
from m3dec.examples.training.report import read_metrics
from m3dec.examples.user_errors import exits_with_message


@dataclass
class StudyArguments:
    tables: list[str] = field(
        default_factory=lambda: ["1", "2", "3"],
        metadata={"help": "1, 2, 3: the paper's. lfr: both of its targets. blind: expressions dealt out at random."},
    )
    base: str | None = field(default=None, metadata={"help": "A recipe to put under all rows. None: their own."})
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    output_dir: str = "outputs/study"
    at_once: int = field(default=1, metadata={"help": "Runs side by side; they share the cores."})
    launcher: str = field(default="", metadata={"help": 'Such as "torchrun --nproc_per_node 4 -m". None: one process.'})


@dataclass(frozen=True)
class Table:
    """A table of § IV-B, on the validation set of RefCOCO; or one of ours in its manner, without the paper's scores."""

    title: str
    scores: tuple[str, ...]
    columns: tuple[str, ...]  # each of them has all scores
    lines: dict[str, tuple[str, ...]]  # a label → for each column a name in PAPER or OTHER_ROWS


PAPER = {  # IoU, Pr@0.5 and, where Table III gives it, Pr@0.9, percent; the names are files of recipes/tables
    "ours": (67.88, 79.01, 17.70),
    "table1_shared_1": (60.57, 72.47),
    "table1_shared_2": (66.30, 78.01),
    "table1_shared_4": (67.82, 78.95),
    "table1_independent_1": (62.36, 74.00),
    "table1_independent_2": (66.32, 78.55),
    "table1_independent_3": (67.80, 78.94),
    "table1_independent_4": (67.76, 78.99),
    "table1_generic_1": (55.42, 70.02),
    "table1_generic_2": (64.12, 75.33),
    "table1_generic_3": (64.40, 75.81),
    "table1_generic_4": (64.42, 75.79),
    "table2_0": (62.04, 73.52),
    "table2_1": (65.56, 76.66),
    "table2_2": (66.70, 77.62),
    "table2_3": (65.92, 76.80),
    "table3_vlt": (66.05, 78.64, 13.81),
    "table3_concatenated": (66.58, 78.90, 15.55),
}
OTHER_ROWS = {  # the fields of a recipe that they change
    "ours": {},
    "lfr_joint": {"model": {"reconstruction_target": "joint"}},
    "lfr_detached": {"model": {"reconstruction_target": "detached"}},
    "blind": {"shuffle_expressions": True},
}
TABLES = {
    "1": Table(
        "Table I: layers of M³Dec",
        ("miou", "pr@0.5"),
        ("Shared", "Independent", "Generic"),
        {
            "1": ("table1_shared_1", "table1_independent_1", "table1_generic_1"),
            "2": ("table1_shared_2", "table1_independent_2", "table1_generic_2"),
            "3": ("ours", "table1_independent_3", "table1_generic_3"),
            "4": ("table1_shared_4", "table1_independent_4", "table1_generic_4"),
        },
    ),
    "2": Table(
        "Table II: components",
        ("miou", "pr@0.5"),
        ("",),
        {
            "#0 Baseline (Generic LAV)": ("table2_0",),
            "#1 Baseline (M³Att)": ("table2_1",),
            "#2 Baseline + IMI": ("table2_2",),
            "#3 Baseline + IMI*": ("table2_3",),
            "#4 Ours": ("ours",),
        },
    ),
    "3": Table(
        "Table III: mask decoder",
        ("miou", "pr@0.5", "pr@0.9"),
        ("",),
        {"VLT": ("table3_vlt",), "Concate": ("table3_concatenated",), "Ours": ("ours",)},
    ),
    "lfr": Table(
        "What LFR reconstructs (not in the paper)",
        ("miou", "pr@0.5"),
        ("",),
        {
            "no LFR": ("table2_2",),
            "joint: gradients into the target too, the text as written": ("lfr_joint",),
            "detached: a fixed target": ("lfr_detached",),
        },
    ),
    "blind": Table(
        "A language-blind control (not in the paper)",
        ("miou", "pr@0.5"),
        ("",),
        {"a picture's expressions dealt out to its masks at random": ("blind",), "Ours": ("ours",)},
    ),
}


@exits_with_message
def main(arguments: list[str] | None = None):
    parser = HfArgumentParser(StudyArguments, allow_abbrev=False)
    study, flags = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    unknown = sorted(set(study.tables) - TABLES.keys())
    if unknown:
        raise SystemExit(f"--tables takes {', '.join(TABLES)}, but got {', '.join(unknown)}.")
    output = Path(study.output_dir)
    names = list(dict.fromkeys(name for key in study.tables for line in TABLES[key].lines.values() for name in line))
    runs = [(name, seed) for seed in study.seeds for name in names]
    if any(flag.partition("=")[0] == "--seed" for flag in flags):
        raise SystemExit("A study trains with several seeds: give --seeds, not --seed.")
    try:
        made_by = {run: {"recipe": row_recipe(run[0], study.base), "flags": flags} for run in runs}
        recipes = [parsed(by["recipe"], flags) for by in made_by.values()]
        claim_folders(made_by, output)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    read_data(recipes[0])  # drawn and cached once for all
    bar = tqdm(total=len(runs), desc="runs")
    with bar, ThreadPoolExecutor(study.at_once) as pool:

        def finish(run: tuple[str, int]) -> bool:
            done = train_row(*run, study, flags)
            bar.update()
            return done

        finished = list(pool.map(finish, runs))
    text = "\n\n".join(table_text(TABLES[key], output, study.seeds) for key in study.tables)
    text += "\n\nThreshold 0.5; the paper's figures are on RefCOCO's val, probably at 0.35."
    (output / "tables.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    draw_curves({key: TABLES[key] for key in study.tables}, output, study.seeds)
    failed = [run_name(*run) for run, done in zip(runs, finished, strict=True) if not done]
    if failed:
        raise SystemExit(f"Without a result: {', '.join(failed)}. Each has a train.log. Start again to go on.")


def run_name(name: str, seed: int) -> str:
    return f"{name}-seed{seed}"


def claim_folders(made_by: dict[tuple[str, int], dict], output: Path) -> None:
    """Write the recipe and the flags of each run into its folder, or raise ValueError where one is there by others:
    neither tables nor runs mix studies."""
    folders = {output / run_name(*run): by for run, by in made_by.items()}
    for folder, expected in folders.items():
        path = folder / "made_by.json"
        if folder.exists() and (not path.exists() or json.loads(path.read_text(encoding="utf-8")) != expected):
            raise ValueError(
                f"{folder} is of another recipe or other flags. Choose another --output_dir, or delete it."
            )
    for folder, by in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(by, indent=2), folder / "made_by.json")
        write_recipe(by["recipe"], folder / "row.yaml")


def parsed(recipe: dict, flags: list[str]) -> TrainingRecipe:
    """The recipe as train.py will read it, or its error before anything is trained."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.yaml"
        write_recipe(recipe, path)
        return parse_recipe([str(path), *flags])


def write_recipe(recipe: dict, path: Path) -> None:
    write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), path)


def row_recipe(name: str, base: str | None) -> dict:
    """The whole recipe of a row: what it changes, over `base` or over what its own file is based on."""
    if name in OTHER_ROWS:
        under, changes = read_recipe(base or RECIPES / "refcoco_darknet53.yaml"), OTHER_ROWS[name]
    else:
        own = RECIPES / "tables" / f"{name}.yaml"
        changes = yaml.safe_load(own.read_text(encoding="utf-8"))
        under = read_recipe(base or own.parent / changes["base"])
        changes = {key: value for key, value in changes.items() if key not in ("base", "output_dir")}
    recipe = {"checkpointing_steps": 500, **under, **changes}  # so that a study can go on
    recipe["model"] = {**under.get("model", {}), **changes.get("model", {})}
    return recipe


def train_row(name: str, seed: int, study: StudyArguments, flags: list[str]) -> bool:
    """Train a row with a seed, or go on with it, in a process of its own; whether its result is there."""
    output = Path(study.output_dir) / run_name(name, seed)
    if (output / "result.json").exists():
        return True
    launcher = shlex.split(study.launcher) or [sys.executable, "-m"]
    command = [*launcher, "m3dec.examples.train", str(output / "row.yaml"), *flags]
    command += ["--seed", str(seed), "--output_dir", str(output), "--resume_from_checkpoint", "newest"]
    threads = str(max(1, (os.cpu_count() or 1) // study.at_once))
    with (output / "train.log").open("a", encoding="utf-8") as log:
        environment = {"OMP_NUM_THREADS": threads, **os.environ}
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if ended.returncode != 0:
        return False
    write_text(json.dumps(evaluations(output)[-1], indent=2), output / "result.json")
    return True


def write_text(text: str, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.rename(path)


def evaluations(output: Path) -> list[dict]:
    """The lines of a run's metrics.jsonl that hold scores."""
    return [line for line in read_metrics(output / "metrics.jsonl") if "figures" in line]


def results(name: str, output: Path, seeds: list[int]) -> list[dict[str, float]]:
    """The scores of a row's finished runs."""
    found = [output / run_name(name, seed) / "result.json" for seed in seeds]
    return [json.loads(path.read_text(encoding="utf-8"))["figures"]["all"] for path in found if path.exists()]


def table_text(table: Table, output: Path, seeds: list[int]) -> str:
    """A table as Markdown: each score as mean ± spread (half of largest minus smallest), and the paper's beside it."""
    titles = {"miou": "IoU (mIoU)", "pr@0.5": "Pr@0.5", "pr@0.9": "Pr@0.9"}
    header = [f"{column} {titles[score]}".strip() for column in table.columns for score in table.scores]
    rows = [["", *header, "seeds", "against Ours"], ["---"] * (len(header) + 3)]
    ours = results("ours", output, seeds)
    for label, names in table.lines.items():
        cells, counts, verdicts = [], [], []
        for column, name in zip(table.columns, names, strict=True):
            found = results(name, output, seeds)
            counts.append(str(len(found)))
            said = verdict([result["miou"] for result in found], [result["miou"] for result in ours])
            verdicts.append("" if name == "ours" else f"{column} {said}".strip())
            for place, score in enumerate(table.scores):
                values = [100 * result[score] for result in found]
                paper = PAPER[name][place : place + 1] if name in PAPER else ()
                cells.append(cell(values) + "".join(f" (paper {number:.2f})" for number in paper))
        rows.append([label, *cells, ", ".join(dict.fromkeys(counts)), ", ".join(filter(None, verdicts))])
    return f"### {table.title}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows)


def cell(values: list[float]) -> str:
    if not values:
        return "no run"
    spread = f" ± {(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


def verdict(values: list[float], ours: list[float]) -> str:
    """How a row's mIoU compares with ours: undecided where the means differ by less than either's seeds do."""
    if len(values) < 2 or len(ours) < 2:
        return "undecided: one seed"
    difference = 100 * (statistics.mean(values) - statistics.mean(ours))
    between_seeds = 100 * max(max(row) - min(row) for row in (values, ours))
    return "undecided" if abs(difference) <= between_seeds else f"{difference:+.2f}"


def draw_curves(tables: dict[str, Table], output: Path, seeds: list[int]) -> None:
    """curves.png: the mIoU of each row over the steps, a thin line a seed, a panel a table."""
    figure = Figure(figsize=(5.2 * len(tables), 4.2), layout="constrained")
    for axes, table in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.values(), strict=True):
        for number, (label, names) in enumerate(table.lines.items()):
            for column, name in zip(table.columns, names, strict=True):
                for seed in seeds:
                    folder = output / run_name(name, seed)
                    lines = evaluations(folder) if (folder / "metrics.jsonl").exists() else []
                    steps, scores = [line["step"] for line in lines], [line["figures"]["all"]["miou"] for line in lines]
                    title = f"{label} {column}".strip()[:34] if seed == seeds[0] else None
                    style = "-" if column == table.columns[0] else "--"
                    if steps:
                        axes.plot(steps, [100 * s for s in scores], style, color=f"C{number}", lw=1, label=title)
        axes.set(title=table.title, xlabel="step", ylabel="mIoU, percent")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7, frameon=False)
    figure.savefig(output / "curves.png", dpi=130)


if __name__ == "__main__":
    main()
