"""A flat folder with code: it loads where m3dec is not installed, gives the same bits, and holds nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_bad_input import photo

from m3dec import M3DecForImageSegmentation, M3DecProcessor
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.hub.outward.export import (
    AUTO_CLASSES,
    AUTO_IMAGE_PROCESSOR,
    AUTO_PROCESSOR,
    PIPELINES,
    export,
    flat_code,
    imports,
)
from m3dec.processing.referring_data.scenes import draw_scene

REMOTE_CODE = Path(__file__).with_name("remote_code.py")
ALLOWED = {"torch", "torchvision", "transformers", "numpy", "PIL"}


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    return export(SHIPPED_CHECKPOINT, tmp_path_factory.mktemp("export") / "flat")


def loaded(model, folder: Path, *flags, environment: dict | None = None) -> tuple[dict, dict]:
    """What remote_code.py gives in a process of its own: arrays, and the module of each class."""
    draw_scene(seed=3).image.save(folder / "image.png")
    command = [sys.executable, "-W", "ignore", REMOTE_CODE, model, folder / "out.npz", folder / "image.png", *flags]
    clean = {"HF_HOME": str(folder / "home"), "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **clean, **(environment or {})}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(folder / "out.npz") as arrays:
        return dict(arrays), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_without_the_package_a_flat_folder_gives_the_same_bits_also_when_it_is_saved_again(flat, tmp_path):
    for name in ("here", "again", "installed"):
        (tmp_path / name).mkdir()
    here, modules = loaded(flat, tmp_path / "here", "--save_again", tmp_path / "saved")
    assert all(module.startswith("transformers_modules.") for module in modules.values()), modules
    again, modules = loaded(tmp_path / "saved", tmp_path / "again")
    assert all(module.startswith("transformers_modules.") for module in modules.values()), modules
    installed, modules = loaded(flat, tmp_path / "installed", "--installed")  # no trust is needed, no code is run
    assert all(module.startswith("m3dec.") for module in modules.values()), modules
    assert here["masks"].any()
    for name, expected in here.items():
        assert np.array_equal(expected, again[name]) and np.array_equal(expected, installed[name]), name


def test_flat_code_imports_only_what_every_user_of_transformers_has(flat):
    for path in flat.glob("*.py"):
        for name in imports(path.read_text()):
            top = name.split(".")[0]
            assert name.startswith(".") or top in ALLOWED or top in sys.stdlib_module_names, (path.name, name)
            if name.startswith("."):
                assert (flat / f"{name[1:]}.py").is_file(), (path.name, name)
        assert "m3dec" not in {name.split(".")[0] for name in imports(path.read_text())}


def test_every_file_of_a_flat_folder_is_needed(flat):
    classes = [*AUTO_CLASSES.values(), *AUTO_IMAGE_PROCESSOR.values(), AUTO_PROCESSOR]
    classes += [pipeline["impl"] for pipeline in PIPELINES.values()]
    needed, waiting = set(), [name.split(".")[0] for name in classes]
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += [found[1:] for found in imports((flat / f"{name}.py").read_text()) if found.startswith(".")]
    assert {path.stem for path in flat.glob("*.py")} == needed | {"handler"}  # the endpoints' own name
    saved = {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    beside = {"README.md", "requirements.txt"}  # the card, and what an endpoint installs for handler.py
    assert {path.name for path in flat.iterdir() if path.suffix != ".py"} == saved | beside
    names = {re.split("[<>=]", line)[0] for line in (flat / "requirements.txt").read_text().splitlines()}
    assert names == {"timm", "transformers"}


def test_only_images_that_the_card_shows_leave_with_it_and_no_name_of_foreign_code(tmp_path):
    source = shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "source")
    for name in ("shown.png", "private.png"):
        photo().save(source / name)
    with (source / "README.md").open("a") as card:
        card.write("\n![what it does](shown.png)\n")
    for name in ("tokenizers.py", "tokenizer.py", "model.safetensors.py", "modeling_m3dec.py"):
        (source / name).write_text("evil = True")
    (source / "tokenizer").mkdir()
    for name in ("tokenizer_config.json", "config.json", "processor_config.json"):
        foreign = {"AutoTokenizer": [None, "other/code--evil.Tokenizer"], "AutoConfig": "other/code--evil.Config"}
        values = json.loads((source / name).read_text()) | {"auto_map": foreign}
        (source / name).write_text(json.dumps(values))
    flat = export(source, tmp_path / "flat")
    assert {path.name for path in flat.glob("*.png")} == {"shown.png"}
    assert not [path.name for path in flat.iterdir() if b"evil" in path.read_bytes()]


def test_no_path_of_a_pretrained_part_leaves_with_the_model(flat, tmp_path):
    shutil.copytree(flat, tmp_path / "model")
    config = json.loads((flat / "config.json").read_text())
    config["backbone_config"]["_name_or_path"] = "/home/me/weights"
    (tmp_path / "model" / "config.json").write_text(
        json.dumps(config | {"text_config": {"_name_or_path": "/home/me/bert"}})
    )
    export(tmp_path / "model", tmp_path / "flat")
    exported = json.loads((tmp_path / "flat" / "config.json").read_text())
    assert "/home/me" not in json.dumps(exported)
    assert "text_config" in exported and exported["backbone_config"] == config["backbone_config"] | {
        "_name_or_path": ""
    }


def test_a_link_that_leads_out_of_the_folder_is_refused_and_the_caches_own_are_followed(tmp_path):
    (tmp_path / "token").write_text("secret")
    cached = shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "cache" / "snapshots" / "abc")
    (tmp_path / "cache" / "blobs").mkdir()
    shutil.move(cached / "model.safetensors", tmp_path / "cache" / "blobs" / "1")
    (cached / "model.safetensors").symlink_to("../../blobs/1")
    assert not (export(cached, tmp_path / "flat") / "model.safetensors").is_symlink()
    (cached / "shown.png").symlink_to(tmp_path / "token")
    with (cached / "README.md").open("a") as card:
        card.write("\n![](shown.png)\n")
    with pytest.raises(ValueError, match=r"shown\.png is a link to .*token, out of its folder"):
        export(cached, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_export_goes_into_an_empty_folder_that_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert (export(SHIPPED_CHECKPOINT, "empty") / "config.json").is_file()


def test_the_classes_of_a_flat_folder_are_where_its_configs_say(flat):
    code = flat_code()
    for name in [*AUTO_CLASSES.values(), *AUTO_IMAGE_PROCESSOR.values(), AUTO_PROCESSOR]:
        module, class_name = name.split(".")
        assert f"\nclass {class_name}(" in code[f"{module}.py"]
    assert json.loads((flat / "config.json").read_text())["auto_map"] == AUTO_CLASSES


def test_an_export_of_an_export_is_the_same(flat, tmp_path):
    again = export(flat, tmp_path / "again")
    assert {path.name for path in again.iterdir()} == {path.name for path in flat.iterdir()}
    for path in again.iterdir():
        assert path.read_bytes() == (flat / path.name).read_bytes(), path.name


def test_an_export_overwrites_nothing(flat, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="needs a new folder"):
        export(SHIPPED_CHECKPOINT, tmp_path / "there")
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine.txt"]


def test_what_cannot_be_exported_is_named_and_leaves_nothing(tmp_path):
    source = tmp_path / "source"
    M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT).save_pretrained(source)
    with pytest.raises(FileNotFoundError, match=r"lacks processor_config\.json and tokenizer\.json and"):
        export(source, tmp_path / "flat")
    M3DecProcessor.from_pretrained(SHIPPED_CHECKPOINT).save_pretrained(source)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"lacks model\.safetensors"):
        export(source, tmp_path / "flat")
    shards = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(shards))
    (source / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002-of-00002\.safetensors"):
        export(source, tmp_path / "flat")
    (source / "model-00002-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"model-00001-of-00002\.safetensors is no whole file of weights"):
        export(source, tmp_path / "flat")
    (source / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret"}}')
    with pytest.raises(FileNotFoundError, match="lacks the shards"):
        export(source, tmp_path / "flat")
    (source / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ValueError, match="a clone needs git-lfs"):
        export(source, tmp_path / "flat")
    (source / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="of type 'bert'"):
        export(source, tmp_path / "flat")
    with pytest.raises(FileNotFoundError, match="no folder here"):
        export(tmp_path / "nowhere" / "at all", tmp_path / "flat")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
