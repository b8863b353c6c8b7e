"""The command m3dec: what it prints, writes and returns, and that a bad image stops none of the others."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from test_bad_input import BAD_PICTURES, photo
from transformers import AutoModelForImageSegmentation, pipeline

from m3dec.examples import PHOTOGRAPHS
from m3dec.hub import PHOTOS_CHECKPOINT, SCENES_CHECKPOINT
from m3dec.processing.referring_data import load_referring_dataset
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared
from m3dec.processing.referring_data.scenes import draw_scene, write_scenes
from m3dec_command_line.__main__ import COMMANDS, main


def run(*arguments) -> int:
    """The exit status of `m3dec …` in this process."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


@pytest.fixture
def images(tmp_path):
    for seed in (3, 11):
        draw_scene(seed=seed).image.save(tmp_path / f"scene{seed}.png")
    return tmp_path / "scene3.png", tmp_path / "scene11.png"


def test_the_command_is_installed_and_every_program_has_its_help(capsys):
    [command] = [entry for entry in importlib.metadata.entry_points(group="console_scripts") if entry.name == "m3dec"]
    assert command.load() is main
    assert run("--help") == 0
    listed = capsys.readouterr().out
    for name in COMMANDS:
        assert name in listed
        assert run(name, "--help") == 0 and capsys.readouterr().out.startswith(f"usage: m3dec {name}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("frobnicate",), "no command 'frobnicate'"),
        (("predict", "the cat"), "name at least one image"),
        (("predict", "a.jpg"), "name at least one image"),
        (("predict", "a.jpg", "b.jpg", "the cat", "--output", "c.png"), "--output is for one image"),
        (("predict", "a.jpg", "the cat", "--output", "overlay"), "--output is an image's file"),
        (
            ("predict", "a/b.jpg", "c/b.jpg", "the cat", "--output_dir", "d"),
            "two images would be written to d/b_overlay",
        ),
        (("predict", "a.png", "../folder/a.jpg", "the cat"), "two images would be written to a_overlay.png"),
        (("predict", "他站在" * 40), "name at least one image"),
        (("predict", "a.jpg", "the cat", "--threshold", "2"), "a probability between 0 and 1"),
        (("predict", "http://[a/b.jpg", "the cat"), "an address cannot be read"),
        (("predict", "a.png", "a_mask_2.png", "the cat", "the dog"), "over the image a_mask_2.png"),
        (("predict", "a.png", "b_overlay.png", "b.png", "the cat"), "over the image b_overlay.png"),
        (("predict", "a.png", "the cat", "--json", "--output", "./a.png"), "over the image a.png"),
    ],
)
def test_a_call_that_makes_no_sense_has_status_2_and_a_reason(arguments, words, capsys, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    assert run(*arguments) == 2
    assert words in capsys.readouterr().err


def test_json_lines_hold_the_pipelines_masks_for_all_images_and_expressions(images, capsys):
    texts = ["the leftmost thing", "the ring"]
    assert run("predict", *images, *texts, "--model", SCENES_CHECKPOINT, "--json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pipe = pipeline("referring-image-segmentation", model=SCENES_CHECKPOINT)
    expected = [(path, answer) for path in images for answer in pipe(str(path), text=texts)]
    for line, (path, answer) in zip(lines, expected, strict=True):
        assert (line["image"], line["expression"]) == (str(path), answer["label"])
        assert np.array_equal(coco_mask.decode(line["mask"]), np.asarray(answer["mask"]) // 255)
        assert line["area"] == (np.asarray(answer["mask"]) > 0).sum()
        assert line["score"] == pytest.approx(answer["score"])
    assert {path.name for path in images[0].parent.iterdir()} == {"scene3.png", "scene11.png"}  # nothing written


def test_overlay_and_masks_go_where_they_are_asked_to(images, tmp_path, capsys):
    asked = ("predict", images[0], "the leftmost thing", "--model", SCENES_CHECKPOINT)
    assert run(*asked, "--output_dir", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"scene3_mask_1.png", "scene3_overlay.png"}
    with Image.open(tmp_path / "out" / "scene3_mask_1.png") as mask:
        assert (mask.size, mask.mode) == ((160, 160), "L")
        assert {value for _, value in mask.getcolors()} == {0, 255}
    assert run(*asked, "--output", tmp_path / "one.png", "--json") == 0
    with Image.open(tmp_path / "one.png") as drawn:
        assert drawn.width > 160
    assert run(*asked, "--output", tmp_path / "new" / "folder" / "one.jpg") == 0
    assert (tmp_path / "new" / "folder" / "one.jpg").is_file()
    capsys.readouterr()
    assert run(*asked, "--output_dir", tmp_path / "out", "--threshold", "0.9999999") == 0
    assert "nothing found" in capsys.readouterr().out


def test_without_a_model_the_answers_are_those_of_the_checkpoint_for_photographs(capsys):
    asked = (PHOTOGRAPHS / "coffee.jpg", PHOTOGRAPHS / "cat.jpg", "the cup", "the cat", "--json")
    assert run("predict", *asked) == 0
    by_default = capsys.readouterr().out
    assert run("predict", *asked, "--model", PHOTOS_CHECKPOINT) == 0
    assert capsys.readouterr().out == by_default and len(by_default.splitlines()) == 4


FILES = ["truncated", "zero bytes", "not an image", "missing", "decompression bomb"]


def test_bad_images_are_named_and_the_good_ones_answered(images, tmp_path, capsys):
    bad = []
    for name in FILES:
        (tmp_path / name).mkdir()
        bad.append(BAD_PICTURES[name][0](tmp_path / name))
    assert run("predict", images[0], *bad, images[1], "the ring", "--json") == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["image"] for line in out.splitlines()] == [str(path) for path in images]
    complaints = [line for line in err.splitlines() if line.startswith(str(tmp_path))]
    assert len(complaints) == len(bad)
    for path, line in zip(bad, complaints, strict=True):
        assert line.startswith(f"{path}: ") and len(line) > len(str(path)) + 20
    assert "Traceback" not in err


@pytest.mark.slow
def test_a_name_and_an_expression_that_are_no_utf_8_are_answered_like_any(images, tmp_path):
    shutil.copy(images[0], tmp_path / "caf\udce9.png")
    command = [sys.executable, "-m", "m3dec_command_line", "predict", tmp_path / "caf\udce9.png", images[1]]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "the ring\udce9", "--json"], env=environment, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2


def test_an_expression_without_words_and_a_model_that_is_none_are_told(images, tmp_path, capsys):
    assert run("predict", images[0], "?!", "--json") == 1
    assert "word" in capsys.readouterr().err
    assert run("predict", images[0], "the ring", "--model", tmp_path / "nowhere") == 1
    assert "nowhere cannot be loaded" in capsys.readouterr().err


def test_weights_that_a_clone_without_lfs_left_out_are_told(images, tmp_path, capsys):
    model = shutil.copytree(SCENES_CHECKPOINT, tmp_path / "model")
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert run("predict", images[0], "the ring", "--model", model) == 1
    assert run("info", model) == 1
    assert capsys.readouterr().err.count(f"{model} cannot be loaded: ") == 2


def test_info_says_what_a_model_is(capsys):
    assert run("info") == 0
    assert str(PHOTOS_CHECKPOINT) in capsys.readouterr().out
    assert run("info", SCENES_CHECKPOINT) == 0
    out = capsys.readouterr().out
    assert "4.61 M" in out and "tf_efficientnet_lite0" in out and "160 x 160" in out


def test_info_measures_what_each_part_does_on_prepared_data(tmp_path, capsys):
    write_scenes(tmp_path, {"train": 1, "val": 4})
    tables = load_referring_dataset("refer", root=tmp_path, dataset="scenes", split_by="scenes")
    write_prepared(tables, tmp_path / "prepared")
    assert run("info", SCENES_CHECKPOINT, "--data", tmp_path / "prepared") == 0
    out = capsys.readouterr().out
    gate = AutoModelForImageSegmentation.from_pretrained(SCENES_CHECKPOINT).model.interactions[0].interaction_weight
    assert re.search(r"imi_gate/1 +(\S+)", out)[1] == f"{gate.item():.4g}"
    assert all(f"\n{name}/" in out for name in ("silent", "word_entropy", "position_entropy", "lfr_error"))
    assert run("info", SCENES_CHECKPOINT, "--data", tmp_path / "prepared", "--split", "test") == 1
    assert "Its splits are train, val" in capsys.readouterr().err


def test_export_writes_a_folder_that_loads_and_refuses_one_that_is_there(tmp_path, capsys):
    assert run("export", SCENES_CHECKPOINT, tmp_path / "flat") == 0
    pipe = pipeline("referring-image-segmentation", model=tmp_path / "flat")
    assert len(pipe(photo(), text="the ring")) == 1
    assert run("export", SCENES_CHECKPOINT, tmp_path / "flat") == 1
    assert "needs a new folder" in capsys.readouterr().err


def test_the_list_of_commands_imports_nothing_heavy():
    code = "import sys, m3dec_command_line.__main__ as line; line.main(['--help'])"
    code += "; sys.exit('torch' in sys.modules or 'm3dec' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "predict" in done.stdout


def test_a_programs_libraries_are_no_garbage_and_what_it_makes_itself_may_be():
    code = "import gc, weakref; from m3dec_command_line.__main__ import import_for_good; import_for_good('decimal')"
    code += "; node = type('Node', (), {})(); node.itself, seen = node, weakref.ref(node); del node; gc.collect()"
    code += "; print(gc.isenabled(), gc.get_freeze_count() > 1000, seen())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "None"]


def brought(code: str, libraries: set[str]) -> set[str]:
    """Which of the libraries a new process has imported when the code is done."""
    code += f"; import sys; print(*(name for name in {libraries} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {*done.stdout.splitlines()[-1].split()}


HEAVY = {"datasets", "evaluate", "matplotlib", "pandas", "pyarrow", "peft", "pycocotools", "timm"}


def test_importing_the_package_brings_no_library_of_data_or_training():
    assert brought("import m3dec", HEAVY) == set()


def test_predicting_brings_only_the_library_of_the_models_backbone(images, tmp_path):
    arguments = [str(images[0]), "the red circle", "--model", str(SCENES_CHECKPOINT), "--output_dir", str(tmp_path)]
    assert brought(f"from m3dec.examples.predict import main; main({arguments})", HEAVY) == {"timm"}
    assert (tmp_path / "scene3_mask_1.png").exists()
    swin = {"model_type": "swin", "depths": [1] * 4, "out_features": ["stage2", "stage3", "stage4"]}
    code = "from m3dec import M3DecConfig, M3DecForImageSegmentation as Model; "
    code += f"Model(M3DecConfig(backbone_config={swin}))"
    assert brought(code, HEAVY) == set()
