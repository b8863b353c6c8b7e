"""Every block of the README runs."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("code", [code for language, code in BLOCKS if language == "python"])
def test_python_block_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {"__name__": "__main__"})
    assert "m3dec" in code


def test_the_readme_says_how_to_install_and_test_in_two_commands():
    section = README.read_text(encoding="utf-8").split("## Install")[1].split("\n## ")[0]
    commands = [line for line in section.splitlines() if line.startswith("pip install")]
    assert commands == ["pip install -e . && python examples/quickstart.py", 'pip install -e ".[test]" && pytest']


def test_every_program_and_recipe_that_the_readme_names_is_there():
    named = set(re.findall(r"\b(?:examples|hub|tests)/[\w./-]+\w", README.read_text(encoding="utf-8")))
    assert named
    assert [name for name in sorted(named) if not (README.parent / name).exists()] == []
