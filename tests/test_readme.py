"""Every block of the README runs."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from loopback_hub import TOKENS, loopback_hub  # noqa: F401
from test_examples import TINY

from m3dec.examples import PHOTOGRAPHS

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_block_runs(code, tmp_path, monkeypatch):
    shutil.copytree(PHOTOGRAPHS, tmp_path / "examples" / "photographs")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {"__name__": "__main__"})
    assert "m3dec" in code


def section(title: str) -> str:
    return README.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("title", ["Use it", "Train it", "Publish it"])
def test_the_first_block_of_each_section_has_less_than_ten_lines(title):
    block = re.search(r"^```\w+\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)[1]
    assert len([line for line in block.splitlines() if line.strip()]) < 10


@pytest.mark.slow
def test_what_is_trained_as_the_readme_says_is_published_as_it_says(hub, tmp_path):
    """Both blocks as they stand, with a tiny recipe in the place of scenes.yaml, on the double of the Hub."""
    recipe = {"data_root": "outputs/data", "output_dir": "outputs/scenes", "scenes": {"train": 8, "val": 2, "test": 2}}
    recipe |= {"dataset": "scenes", "split_by": "scenes", "model": TINY, "max_train_steps": 2, "cpu": True}
    recipe |= {"per_device_train_batch_size": 4, "expressions_per_image": 2}
    (tmp_path / "examples" / "recipes").mkdir(parents=True)
    (tmp_path / "examples" / "recipes" / "scenes.yaml").write_text(yaml.safe_dump(recipe))
    blocks = [re.search(r"^```sh\n(.*?)^```", section(title), re.M | re.S)[1] for title in ("Train it", "Publish it")]
    code = "".join(blocks)
    assert "hf auth login\n" in code
    code = code.replace("hf auth login", f"hf auth login --token {TOKENS['owner']}").replace("owner/name", "owner/tiny")
    environment = {**hub.environment(tmp_path), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(["bash", "-ec", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    pushed = hub.repository("owner/tiny")
    assert pushed.private and pushed.at("v1").id == pushed.at().id and pushed.at().id in done.stdout
    assert {path.name for path in (tmp_path / "outputs" / "flat").iterdir()} <= {*pushed.files()}


def test_the_readme_says_how_to_install_and_test_in_two_commands():
    commands = [line for line in section("Install").splitlines() if line.startswith("pip install")]
    assert commands == ["pip install -e . && python examples/quickstart.py", 'pip install -e ".[test]" && pytest']


def test_every_program_and_recipe_that_the_readme_names_is_there():
    named = set(re.findall(r"\b(?:examples|hub|tests)/[\w./-]+\w", README.read_text(encoding="utf-8")))
    assert named
    assert [name for name in sorted(named) if not (README.parent / name).exists()] == []
