"""Masks for whole sets: the pipeline's, whoever calls, in however many parts and processes, stopped wherever."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from test_examples import run
from transformers import pipeline

from m3dec.examples import infer
from m3dec.examples.batch_segmenter import RESULT_SCHEMA, ReferringSegmenter
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.processing.referring_data import decode_mask, load_referring_dataset
from m3dec.processing.referring_data.readers.prepared_shards import write_prepared
from m3dec.processing.referring_data.scenes import draw_scene, write_scenes

ASKED = ["the leftmost thing", "the red ring", "the topmost star"]
NUM_SCENES = 9
RANK_0_OF_1 = ("--rank", "0", "--world_size", "1")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Here and in child processes: small models gain nothing from more, and wait for them where others compute too."""
    threads, before = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    torch.set_num_threads(threads)
    os.environ.pop("OMP_NUM_THREADS")
    if before is not None:
        os.environ["OMP_NUM_THREADS"] = before


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Drawn scenes, and one of them as a camera, a scanner and a drawing program would save it."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "sub").mkdir()
    for seed in range(NUM_SCENES):
        draw_scene(seed=seed).image.save(folder / f"sub/{seed}.png")
    image = draw_scene(seed=20).image.resize((150, 90))
    turned = Image.Exif()
    turned[0x0112] = 6  # on its side
    image.save(folder / "turned.jpg", exif=turned)
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    image.putalpha(image.convert("L"))
    image.save(folder / "clear.png")
    return folder


@pytest.fixture(scope="module")
def truth(folder) -> dict[str, list[dict]]:
    """The pipeline's answers to ASKED by file name."""
    pipe = pipeline("referring-image-segmentation", model=str(SHIPPED_CHECKPOINT), device="cpu")
    names = sorted(infer.files_below(folder))
    return {name: pipe(str(folder / name), text=ASKED) for name in names}


@pytest.fixture(scope="module")
def segmenter(folder) -> ReferringSegmenter:
    return ReferringSegmenter(SHIPPED_CHECKPOINT, device="cpu", image_root=folder)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """The output of a run that nothing disturbed, in five parts."""
    return infer_images(folder, tmp_path_factory.mktemp("whole") / "out")


def flags(folder: Path, output: Path, *more: str) -> list[str]:
    asked = ["--expressions", *ASKED, "--shard_size", "3", "--batch_size", "2", "--device", "cpu", *RANK_0_OF_1]
    return ["--model", str(SHIPPED_CHECKPOINT), "--input", str(folder), "--output", str(output), *asked, *more]


def infer_images(folder: Path, output: Path, *more: str) -> Path:
    infer.main(flags(folder, output, *more))
    return output


def contents(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in output.iterdir()}


def assert_is_the_pipelines(row: dict, answer: dict) -> None:
    mask = decode_mask(row)
    assert row["expression"] == answer["label"] and row["error"] is None
    assert np.array_equal(mask, np.asarray(answer["mask"]) == 255)
    assert (row["area"], tuple(row["size"])) == (mask.sum(), mask.shape)
    assert row["score"] == pytest.approx(answer["score"], abs=1e-5)


def rows_of(columns: dict[str, list]) -> list[dict]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def as_struct(path: Path) -> dict:
    return {"bytes": path.read_bytes(), "path": path.name}


# The callable


@pytest.mark.parametrize("form", [Path.read_bytes, as_struct, Image.open], ids=["bytes", "struct", "PIL"])
def test_the_callable_gives_the_pipelines_masks(form, folder, truth, segmenter):
    batch = {"id": list(truth), "image": [form(folder / name) for name in truth], "text": [ASKED] * len(truth)}
    rows = rows_of(segmenter(batch))
    assert [(row["id"], row["expression_index"]) for row in rows] == [(n, i) for n in truth for i in range(len(ASKED))]
    for row in rows:
        assert_is_the_pipelines(row, truth[row["id"]][row["expression_index"]])
    assert sum(row["area"] > 0 for row in rows) > len(rows) / 2


def test_a_batch_may_be_numpy_columns_with_one_expression_a_row(folder, truth, segmenter):
    names = [f"sub/{seed}.png" for seed in range(3)]
    pixels = np.stack([np.asarray(Image.open(folder / name)) for name in names])  # (3, H, W, 3)
    columns = segmenter({"n": np.arange(3), "image": pixels, "text": np.array(ASKED)})
    for place, row in enumerate(rows_of(columns)):
        assert row["n"] == place
        assert_is_the_pipelines(row, truth[names[place]][place])


def test_paths_stay_in_the_image_folder_and_sentences_are_read_as_the_model_was_trained(folder, truth, segmenter):
    sentence = {"sent_id": 1, "raw": "THE RED RING!", "sent": ASKED[1], "category": None}
    table = pa.table({"image": ["turned.jpg", "../secret.png", "http://localhost/a.png"], "text": [[sentence]] * 3})
    answers = segmenter.answer_table(table)
    assert answers.schema == RESULT_SCHEMA
    found, *refused = answers.to_pylist()
    assert_is_the_pipelines(found, truth["turned.jpg"][1])
    assert [row["error"].split(":")[0] for row in refused] == ["unsafe name"] * 2
    (row,) = rows_of(ReferringSegmenter(SHIPPED_CHECKPOINT)({"image": ["turned.jpg"], "text": ["ring"]}))
    assert row["error"].startswith("missing image: 'turned.jpg' is not in image_root")


def test_it_pickles_as_a_few_strings_before_and_after_use(folder, truth):
    fresh = ReferringSegmenter(SHIPPED_CHECKPOINT, device="cpu", image_root=folder)
    batch = {"image": ["sub/0.png"], "text": [ASKED]}
    before = pickle.dumps(fresh)
    expected = fresh(batch)
    after = pickle.dumps(fresh)
    assert before == after and len(after) < 1000
    assert pickle.loads(after)(batch) == expected


def test_it_works_in_a_process_of_its_own(folder, segmenter):
    batch = {"image": ["sub/0.png"], "text": [ASKED]}
    expected = segmenter(batch)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(segmenter, [batch]) == [expected]


def test_an_image_is_encoded_once_and_many_expressions_go_in_parts(folder, truth, segmenter):
    model, images, expressions = segmenter._load()[0].model, [], []
    hooks = [
        model.model.vision_encoder.register_forward_hook(lambda _, inputs, output: images.append(len(output))),
        model.mask_decoder.register_forward_hook(lambda _, inputs, output: expressions.append(len(output))),
    ]
    image = (folder / "turned.jpg").read_bytes()
    rows = rows_of(segmenter({"image": [image, b"", image], "text": [ASKED * 7, ASKED, ASKED * 7]}))
    for hook in hooks:
        hook.remove()
    assert (images, expressions) == ([1], [32, 10])
    for row in rows:
        if row["error"] is None:
            assert_is_the_pipelines(row, truth["turned.jpg"][row["expression_index"] % 3])
    assert len(rows) == 15 * 3 and sum(row["error"] is None for row in rows) == 42


def test_bad_rows_are_named_and_the_others_answered(folder, truth, segmenter):
    good, png = (folder / "turned.jpg").read_bytes(), (folder / "sub/0.png").read_bytes()
    images = [b"no image", png[:-300], None, {"bytes": None, "path": None}, good, good, good, good]
    texts = [ASKED[:2], ASKED[0], ASKED[0], ASKED[0], ["...", ASKED[1]], None, [], ""]
    rows = rows_of(segmenter({"n": list(range(8)), "image": images, "text": texts}))
    errors = [(row["n"], row["error"] and row["error"].split(":")[0]) for row in rows]
    unreadable, no_word, no_text = "unreadable image", "no word", "no expression"
    no_images = [(0, unreadable), (0, unreadable), (1, unreadable), (2, unreadable), (3, unreadable)]
    assert errors == [*no_images, (4, no_word), (4, None), (5, no_text), (6, no_text), (7, no_word)]
    assert_is_the_pipelines(rows[6], truth["turned.jpg"][1])
    for row in rows:
        nothing = row["error"] is not None
        assert [row[name] is None for name in ("size", "counts", "score", "area")] == [nothing] * 4
        assert "0x" not in (row["error"] or "")  # an address would make every run another


def test_columns_that_do_not_fit_are_named(segmenter):
    with pytest.raises(ValueError, match="'text' is not among its columns: image, caption"):
        segmenter({"image": [], "caption": []})
    with pytest.raises(ValueError, match="the batch has score already"):
        segmenter({"image": [], "text": [], "score": []})
    with pytest.raises(ValueError, match=r"it is 1\.5"):
        ReferringSegmenter(SHIPPED_CHECKPOINT, threshold=1.5)


# The program


def test_a_folder_becomes_parts_with_the_pipelines_masks(folder, truth, whole):
    assert len(list(whole.glob("part-*-of-00004.parquet"))) == len(truth) / 3 == 4
    rows = pq.read_table(whole).to_pylist()  # the manifest does not disturb
    assert [(row["file_name"], row["expression_index"]) for row in rows] == [(n, i) for n in truth for i in range(3)]
    for row in rows:
        assert_is_the_pipelines(row, truth[row["file_name"]][row["expression_index"]])
    assert len(datasets.load_dataset("parquet", data_files=str(whole / "*.parquet"))["train"]) == len(rows)


KILLED = """
import os, signal, sys
from m3dec.examples import infer

def dying(owner, name, times, half=False):
    function, left = getattr(owner, name), times
    def wrapped(*arguments, **settings):
        nonlocal left
        left -= 1
        if half and not left:
            arguments[1].write(b"PAR1 and so on")
            arguments[1].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **settings)
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    setattr(owner, name, wrapped)

for line in sys.stdin:  # each in a process of its own, which need not import everything again
    moment, times = line.split()
    child = os.fork()
    if not child:
        {
            "answering": lambda n: dying(infer.ReferringSegmenter, "answer_table", n),
            "writing": lambda n: dying(infer.pq, "write_table", n, half=True),
            "synchronizing": lambda n: dying(infer.os, "fsync", n),
            "between": lambda n: dying(infer, "write_part", n),
        }[moment](int(times))
        infer.main(sys.argv[1:])
        os._exit(0)
    print("died of", -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def test_killed_inside_and_between_parts_it_goes_on_and_ends_with_the_same_files(folder, whole, tmp_path):
    output, finished = tmp_path / "out", {}
    moments = [("answering", 1, 0), ("writing", 1, 0), ("between", 1, 1), ("answering", 2, 1), ("synchronizing", 2, 2)]
    command = [sys.executable, "-c", KILLED, *flags(folder, output)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    said = tmp_path / "said.txt"
    with said.open("w") as file, subprocess.Popen(command, **pipes, stderr=file) as children:
        for moment, times, parts in moments:
            print(moment, times, file=children.stdin, flush=True)
            assert children.stdout.readline() == f"died of {signal.SIGKILL:d}\n", said.read_text()
            now = {path.name: path.stat() for path in output.glob("part-*.parquet")}
            assert len(now) == parts
            for name, stat in finished.items():
                assert (now[name].st_ino, now[name].st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)
            finished = now
        children.stdin.close()
    assert len(list(output.glob(".part-*.tmp"))) == 1
    assert len(pq.read_table(output)) == 2 * 9  # what is there can be read
    infer_images(folder, output)
    assert contents(output) == contents(whole)
    assert all((output / name).stat().st_ino == stat.st_ino for name, stat in finished.items())


def test_a_finished_run_loads_no_model(folder, whole, monkeypatch):
    before = contents(whole)
    monkeypatch.setattr(ReferringSegmenter, "_load", None)
    infer_images(folder, whole)
    assert contents(whole) == before


def test_two_ranks_together_give_what_one_gives(folder, whole, tmp_path):
    infer_images(folder, tmp_path / "out", "--rank", "1", "--world_size", "2")
    assert sorted(path.name[:10] for path in (tmp_path / "out").glob("part*")) == ["part-00001", "part-00003"]
    infer_images(folder, tmp_path / "out", "--rank", "0", "--world_size", "2")
    assert contents(tmp_path / "out") == contents(whole)


@pytest.mark.slow
def test_of_two_processes_at_one_part_the_slower_one_goes_on(folder, whole, tmp_path, monkeypatch):
    fsync = os.fsync

    def overtaken(descriptor):
        monkeypatch.setattr(os, "fsync", fsync)
        infer_images(folder, tmp_path / "out")  # writes this part, and clears what was left of it
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", overtaken)
    assert contents(infer_images(folder, tmp_path / "out")) == contents(whole)


def test_torchrun_deals_out_the_parts(folder, whole, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = [flag for flag in flags(folder, tmp_path / "out") if flag not in RANK_0_OF_1]
    run(*command, module="m3dec.examples.infer", launcher=launcher)
    table, expected = pq.read_table(tmp_path / "out"), pq.read_table(whole)
    assert table.drop(["score"]) == expected.drop(["score"])  # one thread may add in another order


def test_another_model_threshold_or_input_is_refused(folder, whole, tmp_path):
    for more, said in [
        (("--threshold", "0.35"), "threshold is 0.35 and was 0.5"),
        (("--shard_size", "4"), "shard_size is 4 and was 3; parts is 3 and was 4"),
        (("--expressions", "the ring"), "expressions is "),
    ]:
        with pytest.raises(SystemExit, match=said):
            infer_images(folder, whole, *more)
    other = tmp_path / "model"
    other.mkdir()
    for path in SHIPPED_CHECKPOINT.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    with pytest.raises(SystemExit, match=r"model is '.*' and was"):
        infer_images(folder, whole, "--model", str(other))
    draw_scene(seed=1).image.save(folder / "one_more.png")
    try:
        with pytest.raises(SystemExit, match=r"input is '.*' and was .*Choose another folder"):
            infer_images(folder, whole)
    finally:
        (folder / "one_more.png").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "part-00000-of-00001.parquet").touch()
    with pytest.raises(SystemExit, match=r"has parts without a _infer\.json"):
        infer_images(folder, tmp_path / "out")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_file_says_what_each_image_is_asked(kind, folder, truth, tmp_path):
    pairs = [("turned.jpg", ASKED[1]), ("gone.png", "12"), ("turned.jpg", "..."), ("sub/1.png", ASKED[2])]
    listed = tmp_path / f"asked.{kind}"
    if kind == "csv":
        lines = ["image,split,expression", *(f'{image},val,"{expression}"' for image, expression in pairs)]
    else:
        lines = [json.dumps({"expression": expression, "image": image, "split": 1}) for image, expression in pairs]
    listed.write_text("\n".join(lines), encoding="utf-8-sig" if kind == "csv" else "utf-8")
    command = [f for f in flags(folder, tmp_path / "out", "--expressions_file", str(listed)) if f not in ASKED]
    command.remove("--expressions")
    infer.main(command)
    rows = pq.read_table(tmp_path / "out").to_pylist()
    assert [row["file_name"] for row in rows] == ["gone.png", "sub/1.png", "turned.jpg", "turned.jpg"]
    assert [(row["error"] or "").split(":")[0] for row in rows] == ["missing image", "", "", "no word"]
    assert_is_the_pipelines(rows[1], truth["sub/1.png"][2])
    assert_is_the_pipelines(rows[2], truth["turned.jpg"][1])


def infer_parquet(path: Path, output: Path, *more: str) -> pa.Table:
    where = ["--model", str(SHIPPED_CHECKPOINT), "--input", str(path), "--output", str(output), "--device", "cpu"]
    infer.main([*where, *RANK_0_OF_1, *more])
    return pq.read_table(output)


def test_prepared_shards_are_answered_sentence_by_sentence(tmp_path):
    write_scenes(tmp_path, split_sizes={"val": 3})
    splits = load_referring_dataset("refer", root=tmp_path, dataset="scenes", split_by="scenes")
    write_prepared(splits, tmp_path / "prepared", num_shards=2)
    table = infer_parquet(tmp_path / "prepared", tmp_path / "out")
    truths = {row["ref_id"]: row for row in splits["val"]}
    asked = [(ref_id, s["sent"]) for ref_id, row in truths.items() for s in row["sentences"]]
    assert sorted(zip(*(table[name].to_pylist() for name in ("ref_id", "expression")), strict=True)) == sorted(asked)
    pipe = pipeline("referring-image-segmentation", model=str(SHIPPED_CHECKPOINT), device="cpu")
    for row in table.to_pylist():
        (answer,) = pipe(truths[row["ref_id"]]["image"], text=[row["expression"]])
        assert_is_the_pipelines(row, answer)


def test_rows_are_numbered_the_same_however_they_lie_in_files(folder, tmp_path):
    names = [f"sub/{number % 4}.png" for number in range(11)]
    rows = pa.table({"id": range(11), "photo": names, "text": [ASKED[n % 3] for n in range(11)]})
    columns = ("--image_column", "photo", "--text_column", "text", "--image_root", str(folder))
    tables = []
    for row_group, shard in [(11, 11), (3, 5), (11, 4)]:
        path = tmp_path / f"{row_group}_{shard}" / "rows.parquet"
        path.parent.mkdir()
        pq.write_table(rows, path, row_group_size=row_group)
        output = tmp_path / f"out_{row_group}_{shard}"
        tables.append(infer_parquet(path, output, "--shard_size", str(shard), "--batch_size", "3", *columns))
        assert len(list(output.glob("part-*"))) == -(-11 // shard)
        assert tables[-1]["row"].to_pylist() == tables[-1]["id"].to_pylist() == list(range(11))
    assert all(table.drop(["score"]) == tables[0].drop(["score"]) for table in tables)


def test_parquet_of_datasets_may_be_asked_the_same_of_every_image(folder, truth, tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=5)})
    rows = {"image": [as_struct(folder / "turned.jpg"), as_struct(folder / "deep.png")], "label": [3, 4]}
    table = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "in").mkdir()
    table.to_parquet(str(tmp_path / "in" / "0.parquet"))
    answers = infer_parquet(tmp_path / "in", tmp_path / "out", "--expressions", *ASKED, "--id_columns", "label")
    assert answers.schema.names == ["file", "row", "label", *RESULT_SCHEMA.names]
    for row in answers.to_pylist():
        name = {3: "turned.jpg", 4: "deep.png"}[row["label"]]
        assert_is_the_pipelines(row, truth[name][row["expression_index"]])


def test_answers_about_two_image_folders_are_not_mixed(folder, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "empty").mkdir()
    pq.write_table(pa.table({"image": ["turned.jpg"]}), tmp_path / "in" / "0.parquet")
    asked = ("--expressions", ASKED[0], "--image_root")
    table = infer_parquet(tmp_path / "in", tmp_path / "out", *asked, str(tmp_path / "empty"))
    assert "missing" in table["error"][0].as_py()
    with pytest.raises(SystemExit, match=r"image_root is '.*' and was '.*empty'"):
        infer_parquet(tmp_path / "in", tmp_path / "out", *asked, str(folder))


def test_what_cannot_be_an_input_is_said(folder, tmp_path):
    empty, tables, output = tmp_path / "empty", tmp_path / "tables", tmp_path / "out"
    empty.mkdir()
    tables.mkdir()
    pq.write_table(pa.table({"image": ["a.png"], "caption": ["a cup"]}), tables / "0.parquet")
    caption = ("--text_column", "caption")
    for path, more, said in [
        (empty, (), "there are 0 images and 0 Parquet files"),
        (tmp_path / "gone", (), "gone is not there"),
        (tables, (), "no column 'sentences'; there are image, caption"),
        (tables, caption, "pass --image_root"),
        (tables, (*caption, "--image_column", "photo"), "no column 'photo'"),
        (tables, ("--expressions_file", "a.csv", *caption, "--image_root", "."), "is for a folder of images"),
        (folder, (), "pass --expressions"),
        (folder, ("--expressions", "a", "--expressions_file", "b"), "both are given"),
        (folder, ("--expressions", "a", "--threshold", "1"), "--threshold is between 0 and 1"),
        (folder, ("--expressions", "a", "--rank", "2", "--world_size", "2"), "they are 2 and 2"),
        (folder, ("--expressions", "a", "--batch_size", "0"), "--batch_size is at least 1"),
        (folder, ("--expressions", "a", "--model", str(tmp_path / "no_model")), "no_model is no folder"),
        (folder, ("--expressions", "a", "--output", str(folder / "out")), "The output is beside the input"),
    ]:
        with pytest.raises(SystemExit) as refused:
            infer_parquet(path, output, *more)
        assert said in str(refused.value)
        assert not output.exists()
    (tables / "0.parquet").write_bytes(b"PAR1")
    with pytest.raises(SystemExit, match="no whole Parquet file"):
        infer_parquet(tables, output)
    (tmp_path / "asked.csv").write_text("photo,expression\na.png,cup\n")
    with pytest.raises(SystemExit, match="has the columns `image` and `expression`"):
        infer_parquet(folder, output, "--expressions_file", str(tmp_path / "asked.csv"))


def test_ray_data_gives_what_the_program_gives(folder, tmp_path):
    ray = pytest.importorskip("ray", reason='Ray Data is not installed: pip install "m3dec[ray]"')

    class OnTables(ReferringSegmenter):
        def __call__(self, batch):
            return self.answer_table(batch)

    names = sorted(infer.files_below(folder))
    images = [(folder / name).read_bytes() for name in names] + [b"no image"]
    rows = pa.table({"id": range(len(images)), "image": images, "text": [[*ASKED, "..."]] * len(images)})
    pq.write_table(rows, tmp_path / "rows.parquet")
    expected = infer_parquet(tmp_path / "rows.parquet", tmp_path / "out", "--text_column", "text", "--batch_size", "4")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        settings = {"model": str(SHIPPED_CHECKPOINT), "device": "cpu"}
        answers = ray.data.read_parquet(str(tmp_path / "rows.parquet")).map_batches(
            OnTables, fn_constructor_kwargs=settings, batch_format="pyarrow", batch_size=4, concurrency=1, num_cpus=1
        )
        answers.write_parquet(str(tmp_path / "answers"))
    finally:
        ray.shutdown()
    table = pq.read_table(tmp_path / "answers").sort_by([("id", "ascending"), ("expression_index", "ascending")])
    dropped = ["file", "row", "score"]
    assert table.drop(["score"]).to_pylist() == expected.drop(dropped).to_pylist()
    scores = [np.array(of["score"].to_pylist(), float) for of in (table, expected)]
    np.testing.assert_allclose(*scores, atol=1e-5)
