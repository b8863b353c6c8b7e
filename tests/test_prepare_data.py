"""From files to shards to a trained epoch, by the programs, as a user runs them."""

import csv
import dataclasses
import json
import pickle
import re
import shlex
import shutil
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from test_examples import ALL_RECIPES, TINY, run
from transformers import HfArgumentParser

from m3dec.examples import train
from m3dec.examples.evaluate_referring import EvaluationArguments
from m3dec.examples.training.parts import read_data
from m3dec.examples.training.recipe import RECIPES, parse_recipe
from m3dec.processing.referring_data import ReferringDataError, load_referring_dataset
from m3dec.processing.referring_data.data_arguments import DataArguments
from m3dec.processing.referring_data.generated.rows import generate_referring_dataset
from m3dec.processing.referring_data.readers.contradictions import find_contradictions
from m3dec.processing.referring_data.readers.prepared_shards import check_images, write_prepared
from m3dec.processing.referring_data.scenes import write_scenes
from m3dec.processing.referring_data.summary import summarise

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    """A folder with scenes in the official layout."""
    folder = tmp_path_factory.mktemp("official")
    write_scenes(folder, split_sizes={"train": 20, "val": 5})
    return folder


def read(folder) -> datasets.DatasetDict:
    return load_referring_dataset("refer", root=folder, dataset="scenes", split_by="scenes")


def rows(table) -> list[dict]:
    return sorted(table.remove_columns("image"), key=lambda row: row["ref_id"])


def test_preparing_writes_shards_a_summary_a_sheet_and_a_vocabulary(scenes, tmp_path):
    where = ("--data_root", scenes, "--dataset", "scenes", "--split_by", "scenes")
    output = run(*where, "--output_dir", tmp_path / "out", "--num_shards", "3", module="m3dec.examples.prepare_data")
    assert "No training image is in its own val" in output
    assert len(list((tmp_path / "out" / "data").glob("train-*-of-00003.parquet"))) == 3
    figures = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert figures["train"]["images"] == 20
    assert figures["val"]["references"] == len(read(scenes)["val"])
    assert figures["val"]["area_50"] <= 0.04  # the scenes' own rule
    words = dict(line.split("\t") for line in (tmp_path / "out" / "vocabulary.txt").read_text().splitlines())
    assert int(words["the"]) > 20
    with Image.open(tmp_path / "out" / "samples.png") as sheet:
        assert sheet.width > 500


def test_shards_can_be_moved_and_hold_each_image_once(scenes, tmp_path):
    splits = read(scenes)
    write_prepared(splits, tmp_path / "first", num_shards=2)
    shutil.move(tmp_path / "first", tmp_path / "second")
    moved = load_referring_dataset("prepared", root=tmp_path / "second")
    for name, table in splits.items():
        assert rows(moved[name]) == rows(table)
        images = {row["ref_id"]: row["image"].tobytes() for row in table}
        assert {row["ref_id"]: row["image"].tobytes() for row in moved[name]} == images
    metadata = [pq.read_metadata(path) for path in (tmp_path / "second" / "data").glob("train*")]
    written = sum(m.row_group(g).column(0).total_uncompressed_size for m in metadata for g in range(m.num_row_groups))
    once = sum(path.stat().st_size for path in {Path(row["image"].filename) for row in splits["train"]})
    assert once <= written < 1.05 * once


def test_a_stopped_preparation_goes_on_where_it_was(scenes, tmp_path, monkeypatch):
    splits, written = read(scenes), []
    original = write_prepared.__globals__["_write_shard"]

    def write_three(table, groups, path, progress):
        if len(written) == 3:
            raise KeyboardInterrupt
        original(table, groups, path, progress)
        written.append(path)

    monkeypatch.setitem(write_prepared.__globals__, "_write_shard", write_three)
    with pytest.raises(KeyboardInterrupt):
        write_prepared(splits, tmp_path / "out", num_shards=2)
    with pytest.raises(ReferringDataError, match=r"val-00001-of-00002\.parquet.*Run prepare_data"):
        load_referring_dataset("prepared", root=tmp_path / "out")
    times = [path.stat().st_mtime_ns for path in written]
    monkeypatch.setitem(write_prepared.__globals__, "_write_shard", original)
    write_prepared(splits, tmp_path / "out", num_shards=2)
    assert [path.stat().st_mtime_ns for path in written] == times
    assert not list((tmp_path / "out").glob("**/*.tmp"))
    whole = load_referring_dataset("prepared", root=tmp_path / "out")
    assert {name: rows(table) for name, table in whole.items()} == {name: rows(table) for name, table in splits.items()}


def test_a_folder_with_other_data_is_not_written_over(scenes, tmp_path):
    write_prepared(read(scenes), tmp_path / "out", num_shards=2)
    with pytest.raises(ReferringDataError, match="another number of shards"):
        write_prepared(read(scenes), tmp_path / "out", num_shards=3)


@pytest.mark.parametrize("damage", ["truncated", "another size", "no image"])
def test_a_damaged_image_is_named_and_no_shard_of_it_appears(damage, tmp_path):
    write_scenes(tmp_path, split_sizes={"train": 3})
    path = sorted((tmp_path / "scenes" / "images").iterdir())[1]
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:2000])
    elif damage == "another size":
        Image.new("RGB", (160, 161)).save(path)
    else:
        path.write_text("not found")
    with pytest.raises(ReferringDataError, match=path.name):
        write_prepared(read(tmp_path), tmp_path / "out", num_shards=1)
    assert not list((tmp_path / "out" / "data").glob("*.parquet"))


def test_prepared_data_stream(scenes, tmp_path):
    write_prepared(read(scenes), tmp_path / "out", num_shards=2)
    stream = load_referring_dataset("prepared", root=tmp_path / "out", streaming=True)
    assert rows(stream["val"]) == rows(read(scenes)["val"])


def test_data_that_were_never_prepared_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_data"):
        load_referring_dataset("prepared", root=tmp_path)


@pytest.fixture
def own_data(tmp_path) -> Path:
    """A folder as a user has it, with `my/` as in docs/data.md and `examples/`."""
    write_scenes(tmp_path / "drawn", split_sizes={"train": 5, "val": 2})
    folder = tmp_path / "drawn" / "scenes"
    shutil.copytree(folder / "images", tmp_path / "my" / "images")
    shutil.copy(folder / "instances.json", tmp_path / "my" / "instances.json")
    with open(tmp_path / "my" / "expressions.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["image", "expression", "annotation_id", "split"])
        for split, references in read(tmp_path / "drawn").items():
            for row in references:
                for sentence in row["sentences"]:
                    table.writerow([row["file_name"], sentence["raw"], row["ann_id"][0], split])
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    return tmp_path


def test_the_pages_four_commands_lead_from_a_coco_file_to_a_trained_and_measured_model(own_data):
    page = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    commands = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1].strip().splitlines()
    assert len(commands) == 4
    for command in commands:
        program, *flags = shlex.split(command.removeprefix("python examples/"))
        output = run(*flags, module=f"m3dec.examples.{program.removesuffix('.py')}", cwd=own_data)
    assert "my_data val" in output  # the last one's table
    assert (own_data / "outputs" / "your_data" / "best" / "model.safetensors").is_file()


def test_checking_own_data_lists_every_fault_with_its_line(own_data):
    path = own_data / "my" / "expressions.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[4] = lines[4].replace(".jpg", ".gif")
    lines[9] = ",".join([*lines[9].split(",")[:2], "99999", "train"])
    path.write_text("\n".join(lines), encoding="utf-8")
    flags = ["--source", "coco", "--expressions", path, "--instances", own_data / "my" / "instances.json"]
    flags += ["--image_root", own_data / "my" / "images", "--check"]
    with pytest.raises(AssertionError, match=r"(?s)2 faults.*line 5: .*gif.*line 10: .*99999"):
        run(*flags, module="m3dec.examples.prepare_data")


@pytest.mark.parametrize("source", ["refer", "generated"])
def test_checking_names_the_masks_that_contradict_their_annotations(source, scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path / "root")
    instances = root / "scenes" / "instances.json"
    assert find_contradictions(instances) == []
    content = json.loads(instances.read_text())
    bad = content["annotations"][7]
    bad["bbox"] = [2 * number for number in bad["bbox"]]
    instances.write_text(json.dumps(content))
    flags = {
        "refer": ["--data_root", root, "--dataset", "scenes", "--split_by", "scenes"],
        "generated": ["--sentences", "generated", "--instances", instances, "--image_root", root / "scenes" / "images"],
    }
    with pytest.raises(AssertionError, match=rf"(?s)1 fault.*annotation {bad['id']} has .*image of another size"):
        run(*flags[source], "--check", module="m3dec.examples.prepare_data")


def test_reading_warns_once_of_masks_that_contradict_their_annotations(scenes, tmp_path, caplog):
    root = shutil.copytree(scenes, tmp_path / "root")
    instances = root / "scenes" / "instances.json"
    content = json.loads(instances.read_text())
    for annotation in content["annotations"]:
        annotation["area"] *= 9
    instances.write_text(json.dumps(content))
    read(root)
    generate_referring_dataset(instances, root / "scenes" / "images", val_share=0)
    said = [record.message for record in caplog.records if "contradict their" in record.message]
    assert len(said) == 2 and all(re.match(r"\d\d+ masks of .* such as: annotation \d+ has", text) for text in said)


@pytest.fixture
def two_sets(tmp_path) -> Path:
    """Sets a and b of the same images, of which b holds out the first that a trains on."""
    write_scenes(tmp_path, split_sizes={"train": 6, "val": 2}, dataset="a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    path = tmp_path / "b" / "refs(scenes).p"
    refs = pickle.loads(path.read_bytes())
    refs = [ref | {"split": "val"} if ref["image_id"] == 1 else ref for ref in refs]
    path.write_bytes(pickle.dumps(refs, protocol=2))
    return tmp_path


def mixed_recipe(folder: Path, **fields) -> Path:
    recipe = {"output_dir": str(folder / "run"), "data_root": str(folder), "dataset": "a", "model": TINY}
    recipe |= {"mix": [{"dataset": "b"}], "max_train_steps": 1, "per_device_train_batch_size": 2, "cpu": True, **fields}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def file_names(table) -> set[str]:
    return set(table["file_name"][:])


def test_a_mixture_leaves_out_what_any_of_its_sets_tests_on(two_sets):
    training, held_out = read_data(parse_recipe([str(mixed_recipe(two_sets))]))
    kept = {f"scenes_train_{number:06d}.jpg" for number in range(1, 6)}
    assert [file_names(table) for table in training] == [kept, kept]
    assert set(training[0]["image_id"][:]).isdisjoint(training[1]["image_id"][:])
    alone = load_referring_dataset("refer", root=two_sets, dataset="a", split_by="scenes")
    assert list(held_out) == ["1 a (scenes)"]
    assert rows(held_out["1 a (scenes)"]) == rows(alone["val"])


def test_a_mixture_finds_the_same_photograph_under_another_name(two_sets):
    path = two_sets / "b" / "instances.json"
    path.write_text(path.read_text().replace("scenes_", "other_"))
    for image in (two_sets / "b" / "images").iterdir():
        image.rename(image.with_name(image.name.replace("scenes_", "other_")))
    training, _ = read_data(parse_recipe([str(mixed_recipe(two_sets))]))
    assert file_names(training[0]) == {f"scenes_train_{number:06d}.jpg" for number in range(1, 6)}
    assert file_names(training[1]) == {f"other_train_{number:06d}.jpg" for number in range(1, 6)}


def test_a_mixture_keeps_another_photograph_of_the_same_name_and_number(two_sets):
    image = sorted((two_sets / "b" / "images").glob("scenes_train_*"))[0]
    Image.new("RGB", Image.open(image).size, "green").save(image)
    training, _ = read_data(parse_recipe([str(mixed_recipe(two_sets))]))
    assert file_names(training[0]) == {f"scenes_train_{number:06d}.jpg" for number in range(6)}


def test_a_mixture_is_evaluated_on_the_splits_of_all_its_sets_where_the_recipe_says_so(two_sets):
    _, held_out = read_data(parse_recipe([str(mixed_recipe(two_sets, eval_mix=True))]))
    ids = [set(table["image_id"][:]) for table in held_out.values()]
    assert list(held_out) == ["1 a (scenes)", "2 b (scenes)"]
    assert [len(numbers) for numbers in ids] == [2, 3] and ids[0].isdisjoint(ids[1])


def test_a_set_to_mix_in_that_names_its_source_stands_for_itself(two_sets):
    mix = [{"dataset": "b", "weight": 2}, {"source": "prepared", "data_root": "outputs/b", "weight": 0.25}]
    recipe = parse_recipe([str(mixed_recipe(two_sets, mix=mix, image_root="elsewhere", weight=0.5))])
    own, changed, other = recipe.sets
    assert dataclasses.asdict(own) == {field: getattr(recipe, field) for field in dataclasses.asdict(own)}
    assert dataclasses.asdict(changed) == dataclasses.asdict(own) | {"dataset": "b"}
    assert other == DataArguments(source="prepared", data_root="outputs/b")
    assert recipe.weights == [0.5, 2.0, 0.25]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mix": [{"dataset": "b", "weight": 0}]}, "weight of a set to mix in is above 0, such as 0.25, but one is 0"),
        ({"mix": [{"dataset": "b", "weight": "much"}]}, "but one is 'much'"),
        ({"mix": [{"dataset": "b", "weight": float("inf")}]}, "but one is inf"),
        ({"mix": [{"dataset": "b", "weight": None}]}, "but one is None"),
        ({"mix": [{"data": "b"}]}, "has the fields .*weight, but one has data"),
        ({"mix": ["b"]}, "has fields, such as {data_root: my/data}, but one is 'b'"),
        ({"weight": -1}, "weight is above 0, such as 0.25, but it is -1.0"),
        ({"train_split": "val"}, "mix takes the splits named 'train', but train_split is 'val'"),
        ({"mix": [], "eval_mix": True}, "the recipe has none. Leave eval_mix out"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_recipe([str(mixed_recipe(tmp_path, **fields))])


def test_a_mixture_of_own_prepared_sets_is_trained_on_by_weight_and_measured_by_set(two_sets, capsys):
    for name in ("a", "b"):
        tables = load_referring_dataset("refer", root=two_sets, dataset=name, split_by="scenes")
        write_prepared(tables, two_sets / f"prepared_{name}", num_shards=1)
    fields = {"source": "prepared", "data_root": str(two_sets / "prepared_a"), "dataset": None, "eval_mix": True}
    mix = [{"source": "prepared", "data_root": str(two_sets / "prepared_b"), "weight": 0.5}]
    fields |= {"mix": mix, "max_train_steps": None, "num_train_epochs": 1, "eval_images": 2}
    train.main([str(mixed_recipe(two_sets, **fields))])
    training, _ = read_data(parse_recipe([str(two_sets / "recipe.yaml")]))
    examples = len(training[0]) + round(len(training[1]) / 2)
    (line,) = [json.loads(line) for line in (two_sets / "run" / "metrics.jsonl").read_text().splitlines()][-1:]
    assert line["step"] == examples // 2  # two images a step
    assert list(line["sets"]) == ["1 prepared_a", "2 prepared_b", "mean of sets"]
    counts = [row["count"] for row in line["sets"].values()]
    assert counts[0] + counts[1] == counts[2] == line["figures"]["all"]["count"]
    mean = (line["sets"]["1 prepared_a"]["miou"] + line["sets"]["2 prepared_b"]["miou"]) / 2
    assert line["sets"]["mean of sets"]["miou"] == pytest.approx(mean)
    assert "mean of sets" in capsys.readouterr().out
    card = (two_sets / "run" / "last" / "README.md").read_text()
    assert "the first 2 images of each set of the split val of prepared_a and prepared_b" in card.replace("\\", "")


@pytest.mark.parametrize("mask", [{"size": [160, 160], "counts": "04"}, {"size": [2, 2], "counts": "04"}])
def test_a_broken_mask_is_found_by_checking_and_is_not_written(mask, tmp_path):
    write_scenes(tmp_path, split_sizes={"train": 2})
    splits = read(tmp_path)
    splits["train"] = splits["train"].map(lambda row, number: {"mask": mask} if number == 3 else {}, with_indices=True)
    for use in (check_images, lambda splits: write_prepared(splits, tmp_path / "out", num_shards=1)):
        with pytest.raises(ReferringDataError, match=r"fill its size|has the size of its image"):
            use(splits)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_a_split_without_a_sentence_is_counted(tmp_path):
    write_scenes(tmp_path, split_sizes={"train": 1})
    silent = read(tmp_path)["train"].map(lambda row: {"sentences": []})
    assert summarise(silent)[0]["words_most"] == 0


@pytest.mark.parametrize("fields", [{"train_split": "val"}, {"mix": [{"data_rot": "x"}]}])
def test_a_mixture_that_means_nothing_is_refused(two_sets, fields):
    with pytest.raises(ValueError, match=r"train_split is 'val'|has data_rot"):
        parse_recipe([str(mixed_recipe(two_sets, **fields))])


def test_training_on_a_mixture_letterboxed_with_all_sentences(two_sets):
    run(mixed_recipe(two_sets, letterbox=True, sentences="all", expressions_per_image=3))
    saved = json.loads((two_sets / "run" / "best" / "processor_config.json").read_text())
    assert saved["image_processor"]["do_letterbox"] is True


def test_an_image_replaced_after_preparing_is_noticed(tmp_path):
    write_scenes(tmp_path, split_sizes={"train": 3})
    write_prepared(read(tmp_path), tmp_path / "out", num_shards=1)
    write_prepared(read(tmp_path), tmp_path / "out", num_shards=1)  # the same again is fine
    Image.new("RGB", (160, 160), "green").save(sorted((tmp_path / "scenes" / "images").iterdir())[1])
    with pytest.raises(ReferringDataError, match="before a change"):
        write_prepared(read(tmp_path), tmp_path / "out", num_shards=1)


def test_checking_looks_at_every_image(tmp_path):
    write_scenes(tmp_path, split_sizes={"train": 3})
    path = sorted((tmp_path / "scenes" / "images").iterdir())[2]
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ReferringDataError, match=path.name):
        check_images(read(tmp_path))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--source", "coco"], "needs --expressions and --image_root"),
        (["--source", "hub"], "needs --dataset"),
        (["--source", "grefcoco", "--data_root", "nowhere"], r"grefs\(unc\)\.json"),
        (["--source", "prepared", "--data_root", "nowhere"], "prepare_data"),
        (["--source", "coco", "--expressions", ".", "--image_root", "."], "none of them"),
        (["--source", "other"], "must be one of"),
    ],
)
def test_what_is_missing_or_wrong_ends_a_program_with_a_sentence(flags, sentence):
    (data,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(flags)
    with pytest.raises(SystemExit, match=sentence):
        data.load()


@pytest.mark.parametrize(
    ("flags", "unread"),
    [
        (["--source", "prepared", "--split_by", "umd", "--on_missing", "skip"], "--split_by, --on_missing"),
        (["--source", "coco", "--expressions", "e.csv", "--image_root", "no", "--split_by", "unc"], "--split_by"),
        (["--split_by", "unc", "--mask_root", "masks"], "--mask_root"),
        (["--source", "hub", "--dataset", "no/such"], None),
        ([], None),
    ],
)
def test_flags_that_a_source_does_not_read_are_warned_of(flags, unread, caplog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (data,) = HfArgumentParser(DataArguments).parse_args_into_dataclasses(flags)
    with pytest.raises(SystemExit):  # there is nothing to load
        data.load()
    said = [record.getMessage() for record in caplog.records if "does not read" in record.getMessage()]
    assert said == ([f"Source {data.source} does not read {unread}; what they say changes nothing."] if unread else [])


TABLE_4 = {  # "Ours": CNN, Swin
    ("refcoco", "unc", "val"): (67.88, 73.60),
    ("refcoco", "unc", "testA"): (70.82, 76.23),
    ("refcoco", "unc", "testB"): (65.02, 70.36),
    ("refcoco+", "unc", "val"): (56.98, 65.34),
    ("refcoco+", "unc", "testA"): (61.26, 70.50),
    ("refcoco+", "unc", "testB"): (50.11, 56.98),
    ("refcocog", "umd", "val"): (54.79, 64.92),
    ("refcocog", "umd", "test"): (58.21, 67.37),
    ("refcocog", "google", "val"): (50.96, 63.90),
    ("refclef", "berkeley", "test"): (69.33, 72.97),
}


def test_every_number_of_table_4_has_its_recipes_and_a_command_that_parses():
    lines = [
        line
        for line in (REPOSITORY / "docs" / "paper.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| Ref") and "evaluate_ref" in line
    ]
    assert len(lines) == 10
    figures = {}
    for line in lines:
        _, cnn, swin, names, command = (cell.strip() for cell in line.strip("|").split("|"))
        flags = shlex.split(command.strip("`"))[2:]
        data, asked = HfArgumentParser((DataArguments, EvaluationArguments)).parse_args_into_dataclasses(flags)
        for name in re.findall(r"`([\w.]+)`", names):
            recipe = parse_recipe([str(RECIPES / name)])
            for field in dataclasses.fields(DataArguments):
                assert getattr(recipe, field.name) == getattr(data, field.name), field.name
            words = 20 if recipe.dataset == "refcocog" or "swin" in name else 15
            words += 2 * (recipe.dataset == "refcocog" and "swin" in name)  # [CLS] and [SEP]
            assert recipe.model.get("max_words", 15) == words
        figures[data.dataset, data.split_by, asked.split] = (float(cnn), float(swin))
        assert asked.threshold == 0.35
    assert figures == TABLE_4
    assert {"mixed_darknet53", "mixed_swin_bert", "your_data"} <= {path.stem for path in ALL_RECIPES}
