"""A study trains each row with each seed once, goes on where it was stopped, and prints what is on disk."""

import json
import shutil
import sys

import pytest
import yaml

from m3dec.examples import study
from m3dec.examples.study import PAPER, TABLES, difference
from m3dec.examples.training.recipe import RECIPES

TRAINING = """
import json, os, pathlib, sys, yaml
flags = dict(zip(sys.argv[3::2], sys.argv[4::2]))
output, recipe = pathlib.Path(flags["--output_dir"]), yaml.safe_load(open(sys.argv[2]))
if "FULL_DISK" in os.environ and "seed1" in output.name:
    sys.exit("no room left")
lines = [{"step": 1, "loss": 0.5}]
last = 0.6 + 0.01 * int(flags["--seed"]) - 0.2 * (recipe["model"].get("interaction") == "none")
for step, miou in ((1, 0.9), (2, last)):
    scores = {"oiou": 0.5, "miou": miou, "pr@0.5": 0.7, "pr@0.9": 0.1, "count": 9}
    lines.append({"step": step, "figures": {"all": scores}})
(output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A study whose trainings are a small program that writes what train.py would."""
    monkeypatch.setattr(study, "read_data", lambda recipe: None)
    (tmp_path / "training.py").write_text(TRAINING)
    launcher = f"{sys.executable} {tmp_path / 'training.py'}"
    flags = ["--output_dir", str(tmp_path / "study"), "--launcher", launcher, "--seeds", "0", "1", "--at_once", "2"]
    return lambda *more: study.main([*flags, *more])


def test_tables_stand_in_the_papers_form_beside_the_papers_figures(run, tmp_path, capsys):
    run("--tables", "2", "3")
    printed = capsys.readouterr().out
    assert (
        "| #0 Baseline (Generic LAV) | 40.50 ± 0.50 (paper 62.04) | 70.00 ± 0.00 (paper 73.52) | 2 | -20.00 |"
        in printed
    )
    assert "| #2 Baseline + IMI | 60.50 ± 0.50 (paper 66.70) | 70.00 ± 0.00 (paper 77.62) | 2 | undecided |" in printed
    assert (
        "| Ours | 60.50 ± 0.50 (paper 67.88) | 70.00 ± 0.00 (paper 79.01) | 10.00 ± 0.00 (paper 17.70) | 2 |  |"
        in printed
    )
    assert (tmp_path / "study" / "tables.md").read_text().strip() == printed.strip()
    assert (tmp_path / "study" / "curves.png").stat().st_size > 1000


def test_a_row_is_its_recipe_over_the_base_of_the_users_choice(run, tmp_path):
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"seed": 7, "model": {"hidden_size": 16}}))
    run("--tables", "2", "blind", "--base", str(tmp_path / "base.yaml"), "--expressions_per_image", "3")
    paths = (tmp_path / "study").glob("*-seed1/row.yaml")
    rows = {path.parent.name.removesuffix("-seed1"): yaml.safe_load(path.read_text()) for path in paths}
    under = {"seed": 7, "checkpointing_steps": 500}  # the latter so that it can go on
    assert rows["ours"] == {**under, "model": {"hidden_size": 16}}
    assert rows["blind"] == {**under, "shuffle_expressions": True, "model": {"hidden_size": 16}}
    changes = yaml.safe_load((RECIPES / "tables" / "table2_0.yaml").read_text())["model"]
    assert rows["table2_0"] == {**under, "model": {"hidden_size": 16, **changes}}


def test_a_study_that_was_stopped_goes_on_with_what_is_missing(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FULL_DISK", "1")
    with pytest.raises(SystemExit, match="Without a result: table3_vlt-seed1, table3_concatenated-seed1, ours-seed1"):
        run("--tables", "3")
    monkeypatch.delenv("FULL_DISK")
    finished = tmp_path / "study" / "ours-seed0" / "result.json"
    assert "no room left" in (tmp_path / "study" / "ours-seed1" / "train.log").read_text()
    written = finished.stat().st_mtime_ns
    run("--tables", "3")
    assert finished.stat().st_mtime_ns == written
    assert json.loads((tmp_path / "study" / "ours-seed1" / "result.json").read_text())["step"] == 2


def test_results_of_other_flags_or_another_base_are_not_mixed_in(run, tmp_path):
    run("--tables", "3", "--max_train_steps", "10")
    with pytest.raises(SystemExit, match="another recipe or other flags"):
        run("--tables", "3")


def test_a_study_that_is_refused_changes_nothing_of_the_one_that_is_there(run, tmp_path):
    run("--tables", "3", "--max_train_steps", "10")
    before = {path: path.read_bytes() for path in (tmp_path / "study").rglob("*") if path.is_file()}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({"learning_rate": 0.5}))
    with pytest.raises(SystemExit, match="another recipe or other flags"):
        run("--tables", "2", "3", "--base", str(tmp_path / "base.yaml"), "--max_train_steps", "10")
    assert {path: path.read_bytes() for path in (tmp_path / "study").rglob("*") if path.is_file()} == before


def test_the_recipe_of_every_run_is_written_before_the_first_is_trained(run, tmp_path, monkeypatch):
    rows = []
    monkeypatch.setattr(study, "train_run", lambda *row: rows.append(sorted(tmp_path.glob("study/*/row.yaml"))))
    with pytest.raises(SystemExit, match="Without a result"):
        run("--tables", "3")
    assert [len(found) for found in rows] == [6] * 6


def test_a_run_that_was_begun_with_other_flags_is_not_gone_on_with(run, tmp_path, monkeypatch):
    monkeypatch.setenv("FULL_DISK", "1")
    with pytest.raises(SystemExit, match="Without a result"):
        run("--tables", "3", "--learning_rate", "0.1")
    for result in (tmp_path / "study").glob("*/result.json"):
        shutil.rmtree(result.parent)
    (tmp_path / "study" / "ours-seed1" / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(SystemExit, match="seed1 is of another recipe or other flags"):
        run("--tables", "3", "--learning_rate", "0.01")
    assert (tmp_path / "study" / "ours-seed1" / "checkpoints" / "step-00000001").exists()


def test_one_seed_for_all_runs_is_refused(run):
    with pytest.raises(SystemExit, match="give --seeds, not --seed"):
        run("--tables", "3", "--seed", "5")


def test_a_language_blind_row_without_several_expressions_an_image_is_refused(run):
    with pytest.raises(SystemExit, match="expressions_per_image is at least 2"):
        run("--tables", "blind")


def test_a_difference_within_the_spread_of_the_seeds_is_undecided():
    assert difference([0.50, 0.52], [0.52, 0.54]) == "undecided"
    assert difference([0.50, 0.51], [0.55, 0.56]) == "-5.00"
    assert difference([0.40], [0.55, 0.56]).startswith("undecided")


def test_every_cell_of_the_papers_tables_has_its_figure_and_its_recipe():
    for key in ("1", "2", "3"):
        for names in TABLES[key]["rows"].values():
            for name in names:
                assert len(PAPER[name]) >= len(TABLES[key]["scores"])
                assert name == "ours" or (RECIPES / "tables" / f"{name}.yaml").exists()


def test_an_unknown_table_is_refused(run):
    with pytest.raises(SystemExit, match="1, 2, 3, lfr, blind"):
        run("--tables", "5")
