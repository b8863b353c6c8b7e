"""Out to the Hub and back, on the loopback double of it: each step in a process of its own with a clean home."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import yaml
from loopback_hub import TOKENS, LoopbackHub, loopback_hub  # noqa: F401
from test_examples import TINY
from test_export import loaded

from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.hub.outward.push import own_paths, push_metric
from m3dec.processing.referring_data.readers.prepared_shards import read_prepared, write_prepared
from m3dec.processing.referring_data.scenes import draw_scene, write_scenes

OWNER, READER = TOKENS["owner"], TOKENS["reader"]


def command(hub, home: Path, *arguments, token=OWNER) -> subprocess.CompletedProcess:
    """`m3dec …` in a process of its own, in the folder `home`."""
    home.mkdir(parents=True, exist_ok=True)
    line = [sys.executable, "-m", "m3dec_command_line", *map(str, arguments)]
    done = subprocess.run(line, env=hub.environment(home, token), cwd=home, capture_output=True, text=True, timeout=600)
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    return done


def pushed(hub, home: Path, *arguments) -> str:
    """The commit's id that `m3dec push …` says."""
    done = command(hub, home, "push", *arguments)
    assert done.returncode == 0, done.stderr[-3000:]
    return re.search(r"at commit ([0-9a-f]{40})\.", done.stdout)[1]


def remote(hub, name: str, folder: Path, *flags, token=OWNER):
    folder.mkdir(parents=True, exist_ok=True)
    environment = {"HF_HUB_OFFLINE": "0", "PYTHONPATH": "", **hub.environment(folder, token)}
    return loaded(name, folder, *flags, environment=environment)


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_pushed_model_comes_back_without_the_package_and_a_second_push_changes_nothing(hub, tmp_path):
    commit = pushed(hub, tmp_path / "a", "model", SHIPPED_CHECKPOINT, "owner/scenes", "--tag", "v1")
    again = pushed(hub, tmp_path / "a", "model", SHIPPED_CHECKPOINT, "owner/scenes", "--tag", "v1")
    assert again == commit and len(hub.repository("owner/scenes").history()) == 2  # the first is the repository's own
    others = {"app.py": b"1", "scripts/run.py": b"2", "last/model.safetensors": b"3"}
    shards = {"model-00001-of-00002.safetensors": b"4", "model.safetensors.index.json": b"{}"}
    hub.commit("owner/scenes", others | shards)  # what others keep there stays, shards of an earlier push do not
    commit = pushed(hub, tmp_path / "a", "model", SHIPPED_CHECKPOINT, "owner/scenes")
    assert others.keys() <= hub.repository("owner/scenes").files().keys()
    assert not shards.keys() & hub.repository("owner/scenes").files().keys()
    there, modules = remote(hub, "owner/scenes", tmp_path / "b", "--revision", commit)
    assert all(module.startswith("transformers_modules.owner.scenes.") for module in modules.values()), modules
    (tmp_path / "c").mkdir()
    here, _ = loaded(SHIPPED_CHECKPOINT, tmp_path / "c", "--installed")
    assert same(there, here)


@pytest.mark.slow
def test_from_training_to_the_hub_and_back(hub, tmp_path):
    write_scenes(tmp_path, split_sizes={"train": 8, "val": 2})
    recipe = {"data_root": str(tmp_path), "max_train_steps": 2, "cpu": True, "per_device_train_batch_size": 4}
    recipe |= {"model": TINY, "output_dir": "outputs", "eval_images": 1, "expressions_per_image": 2}
    recipe |= {"push_to_hub": True, "hub_model_id": "owner/tiny", "hub_private_repo": True}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    done = command(hub, tmp_path / "train", "train", tmp_path / "recipe.yaml")
    assert done.returncode == 0, done.stderr[-3000:]
    commit = re.search(r"owner/tiny is at commit ([0-9a-f]{40})", done.stdout)[1]
    assert hub.repository("owner/tiny").private and hub.repository("owner/tiny").at().id == commit
    assert "names paths of this machine" in done.stderr and str(tmp_path) in done.stderr

    folder = tmp_path / "train" / "outputs" / "best"
    (tmp_path / "here").mkdir()
    here, _ = loaded(folder, tmp_path / "here", "--installed")
    pushed(hub, tmp_path / "train", "model", folder, "owner/tiny", "--branch", "trial", "--tag", "v1")
    for number, revision in enumerate((None, commit, "trial", "v1")):
        flags = ("--revision", revision) if revision else ()
        without, modules = remote(hub, "owner/tiny", tmp_path / f"without{number}", *flags)
        assert same(without, here), revision
        assert all(module.startswith("transformers_modules.") for module in modules.values()), modules
    installed, modules = remote(hub, "owner/tiny", tmp_path / "installed", "--installed")
    assert same(installed, here) and all(module.startswith("m3dec.") for module in modules.values())


@pytest.mark.slow
def test_what_may_not_be_read_or_written_is_refused_by_a_sentence_that_says_what_to_do(hub, tmp_path):
    pushed(hub, tmp_path / "a", "model", SHIPPED_CHECKPOINT, "owner/scenes", "--private", "--tag", "v1")
    draw_scene(seed=3).image.save(tmp_path / "image.png")
    asked = (tmp_path / "image.png", "the ring", "--json", "--model", "owner/scenes")
    done = command(hub, tmp_path / "b", "predict", *asked, token=READER)
    assert done.returncode == 1 and "owner/scenes cannot be loaded" in done.stderr and "private" in done.stderr
    hub.repository("owner/scenes").private, hub.repository("owner/scenes").gated = False, "manual"
    done = command(hub, tmp_path / "b", "predict", *asked, token=READER)
    assert done.returncode == 1 and "gated" in done.stderr and "access" in done.stderr
    hub.repository("owner/scenes").gated = False

    refusals = {
        (READER, "owner/scenes"): "may not write to owner/scenes",
        (None, "owner/scenes"): "hf auth login",
        (OWNER, "somebody/else"): "may not write to somebody/else",
    }
    for (token, name), words in refusals.items():
        done = command(hub, tmp_path / "c", "push", "model", SHIPPED_CHECKPOINT, name, token=token)
        assert done.returncode == 1 and words in done.stderr, done.stderr
    done = command(hub, tmp_path / "a", "push", "model", SHIPPED_CHECKPOINT, "owner/scenes", "--private")
    assert done.returncode == 1 and "is there and public, so nothing was pushed" in done.stderr
    commit = hub.commit("owner/scenes", {"notes.txt": b"new"})
    done = command(hub, tmp_path / "a", "push", "model", SHIPPED_CHECKPOINT, "owner/scenes", "--tag", "v1")
    assert done.returncode == 1 and "v1 of owner/scenes stands for another commit" in done.stderr
    assert hub.repository("owner/scenes").at().id == commit

    code = "from transformers import AutoModel; AutoModel.from_pretrained('owner/scenes')"
    without = "import sys; sys.modules['m3dec'] = None; "
    with pytest.raises(AssertionError, match="trust_remote_code=True"):
        hub.run(without + code, tmp_path / "d")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["upload", "commit"])
def test_an_interrupted_upload_leaves_the_old_revision_loadable(fault, hub, tmp_path):
    commit = pushed(hub, tmp_path / "a", "model", SHIPPED_CHECKPOINT, "owner/scenes")
    other = tmp_path / "other"
    code = f"""
from m3dec import M3DecForImageSegmentation, M3DecProcessor
model = M3DecForImageSegmentation.from_pretrained({str(SHIPPED_CHECKPOINT)!r})
model.model.decoder_layers[0].self_attention.query.weight.data += 1
model.save_pretrained({str(other)!r})
M3DecProcessor.from_pretrained({str(SHIPPED_CHECKPOINT)!r}).save_pretrained({str(other)!r})
"""
    hub.run(code, tmp_path / "a")
    hub.fail_next(fault, times=6, status=None)  # the client tries an upload so often
    done = command(hub, tmp_path / "a", "push", "model", other, "owner/scenes")
    assert done.returncode == 1 and "push again" in done.stderr
    hub.mend()
    assert hub.repository("owner/scenes").at().id == commit
    (tmp_path / "here").mkdir()
    here, _ = loaded(SHIPPED_CHECKPOINT, tmp_path / "here", "--installed")
    assert same(remote(hub, "owner/scenes", tmp_path / "b")[0], here)
    assert pushed(hub, tmp_path / "a", "model", other, "owner/scenes") != commit


@pytest.mark.slow
def test_push_to_hub_of_model_processor_and_pipeline_keeps_all_that_loading_needs(hub, tmp_path):
    code = f"""
import m3dec
from transformers import AutoModelForImageSegmentation, AutoProcessor, pipeline
source = {str(SHIPPED_CHECKPOINT)!r}
AutoModelForImageSegmentation.from_pretrained(source).push_to_hub("owner/parts")
AutoProcessor.from_pretrained(source).push_to_hub("owner/parts")
pipe = pipeline("referring-image-segmentation", model=source)
pipe.push_to_hub("owner/pipe", private=True)
pipe.save_pretrained("saved", push_to_hub=True, repo_id="owner/saved")
"""
    hub.run(code, tmp_path / "a", token=OWNER)
    assert hub.repository("owner/pipe").private
    (tmp_path / "here").mkdir()
    here, _ = loaded(SHIPPED_CHECKPOINT, tmp_path / "here", "--installed")
    for name in ("parts", "pipe", "saved"):
        assert same(remote(hub, f"owner/{name}", tmp_path / name, "--installed")[0], here), name


@pytest.mark.slow
def test_the_metric_and_prepared_data_go_up_and_come_back(hub, tmp_path):
    write_scenes(tmp_path, split_sizes={"train": 3, "val": 2})
    data = ("--data_root", tmp_path, "--dataset", "scenes", "--split_by", "scenes")
    done = command(hub, tmp_path / "a", "prepare", *data, "--output_dir", "prepared", "--num_shards", "2")
    assert done.returncode == 0, done.stderr[-3000:]
    pushed(hub, tmp_path / "a", "dataset", tmp_path / "a" / "prepared", "owner/references")
    pushed(hub, tmp_path / "a", "metric", "owner/referring_iou")
    shards = [str(path) for path in sorted((tmp_path / "a" / "prepared" / "data").glob("val*.parquet"))]
    (tmp_path / "more" / "data").mkdir(parents=True)
    shutil.copy(shards[0], tmp_path / "more" / "data" / "test-00000-of-00001.parquet")
    pushed(hub, tmp_path / "a", "dataset", tmp_path / "more", "owner/references")  # another split: the first two stay
    shutil.copytree(tmp_path / "a" / "prepared", tmp_path / "torn")
    next((tmp_path / "torn" / "data").glob("train*.parquet")).unlink()
    done = command(hub, tmp_path / "a", "push", "dataset", tmp_path / "torn", "owner/references")
    assert done.returncode == 1 and "rows when it is whole" in done.stderr
    write_prepared(datasets.DatasetDict(val=read_prepared(tmp_path / "a" / "prepared")["val"]), tmp_path / "val")
    done = command(hub, tmp_path / "a", "push", "dataset", tmp_path / "val", "owner/references")
    assert done.returncode == 1 and "holds train as well" in done.stderr
    code = f"""
from datasets import Dataset, load_dataset
from huggingface_hub import snapshot_download
import evaluate
streamed = list(load_dataset("owner/references", split="val", streaming=True))
assert streamed == list(Dataset.from_parquet({shards})) and streamed[0]["image"].size == (160, 160)
metric = evaluate.load("owner/referring_iou")
metric.add_batch(predictions=[[1, 2], [3, 4]])
scores = metric.compute()
snapshot_download("owner/references", repo_type="dataset", local_dir="{tmp_path / "back"}")
assert scores["miou"] == 0.625 and scores["oiou"] == 4 / 6, scores
"""
    hub.run("import sys; sys.modules['m3dec'] = None\n" + code, tmp_path / "b")
    back, sent = read_prepared(tmp_path / "back"), read_prepared(tmp_path / "a" / "prepared")
    assert {name: list(split) for name, split in back.items()} == {name: list(split) for name, split in sent.items()}
    assert (tmp_path / "back" / "data" / "test-00000-of-00001.parquet").is_file()


def test_paths_of_the_machine_are_found_in_a_card():
    card = "data_root: /home/me/data\nimage_root: outputs/data\nx: '~/words.npy' C:\\Users\\me\nhttps://a.b/c and 1/2"
    card += "\na: /data\nb: file:///mnt/a\nc: \\\\server\\share\n</p> and/or ../up 1 / 2"
    assert own_paths(card) == [
        "/home/me/data",
        "~/words.npy",
        "C:\\Users\\me",
        "/data",
        "file:///mnt/a",
        "\\\\server\\share",
    ]


def test_a_metric_under_another_name_is_refused():
    with pytest.raises(ValueError, match="owner/referring_iou"):
        push_metric("owner/iou")
