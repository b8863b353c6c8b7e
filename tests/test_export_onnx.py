"""Graphs that answer as the model does: ONNX on onnxruntime, torch.export, and torch.compile without a break."""

import copy
import importlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from test_modeling_m3dec import TINY_BERT, TINY_SWIN, expressions, model_of, pictures, tiny_model
from test_processing_m3dec import word_processor
from torch.export import Dim

from m3dec.examples.publish import export_model
from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.hub.runtimes import export_onnx
from m3dec.modeling_m3dec import M3DecForImageSegmentation
from m3dec.processing.image_processing_pil_m3dec import M3DecImageProcessorPil
from m3dec.processing.images import rgb_array
from m3dec.processing.letterbox import inside_letterbox, letterbox_box
from m3dec.processing.pipeline_m3dec import ReferringImageSegmentationPipeline
from m3dec.processing.processing_m3dec import M3DecProcessor
from m3dec.processing.referring_data.scenes import draw_scene

TOLERANCE = 1e-4
slow = pytest.mark.slow  # an export takes two minutes, most of it torch's: these come after it
GRAPHS = ("image_half.onnx", "text_half.onnx", "model.onnx")
SCENE = draw_scene(seed=11)
TEXTS = [expression.sent for expression in SCENE.expressions[:3]]


def need_onnx():
    for name in export_onnx.PACKAGES:
        pytest.importorskip(name, reason=f"{name} is of the extra [onnx], which is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The shipped checkpoint's graphs."""
    need_onnx()
    folder = tmp_path_factory.mktemp("onnx") / "new" / "scenes"
    export_onnx.export_onnx(SHIPPED_CHECKPOINT, None, folder)
    return folder


@pytest.fixture(scope="module")
def graphs(folder) -> SimpleNamespace:
    return loaded(folder)


@pytest.fixture(scope="module")
def shipped() -> M3DecForImageSegmentation:
    return M3DecForImageSegmentation.from_pretrained(SHIPPED_CHECKPOINT).eval()


@pytest.fixture
def segmenter(folder):
    from m3dec.hub.runtimes.onnx_segmenter import OnnxReferringSegmenter

    return OnnxReferringSegmenter(folder, threads=1)


@pytest.fixture(scope="module")
def segmenter_module():
    """The module, also where onnxruntime is not installed: what is asked of it here needs none."""
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("onnxruntime") is None:
            patch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
        yield importlib.import_module("m3dec.hub.runtimes.onnx_segmenter")


def loaded(folder: Path) -> SimpleNamespace:
    """The graphs of a folder as functions from tensors to a tensor."""
    import onnxruntime

    def function(name):
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        return lambda **inputs: torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])

    return SimpleNamespace(**{name.removesuffix(".onnx"): function(name) for name in GRAPHS})


@torch.no_grad()
def assert_graphs_agree(graphs, model, images: int, lengths: list[int], seed: int = 0):
    """Both ways through the graphs give the model's logits, and its mask wherever a logit is not next to 0."""
    ids, mask = expressions(*lengths, seed=seed)
    words = {"input_ids": ids, "attention_mask": mask, "image_index": torch.arange(len(lengths)) % images}
    pixel_values = pictures(images, model.config.image_size, seed)
    expected = model(pixel_values=pixel_values, **words).logits
    features = graphs.image_half(pixel_values=pixel_values)
    assert features.shape == (images, model.config.num_pixels, model.config.hidden_size)
    for logits in (
        graphs.text_half(image_features=features, **words),
        graphs.model(pixel_values=pixel_values, **words),
    ):
        assert logits.shape == expected.shape
        assert np.allclose(expected, logits, atol=TOLERANCE)
        assert (expected[(logits > 0) != (expected > 0)].abs() < TOLERANCE).all()


@slow
def test_logits_and_masks_are_the_models_on_204_expressions(folder):
    report = json.loads((folder / "report.json").read_text())
    assert report["agrees"] and report["expressions"] == 204
    for graph in ("halves", "whole"):
        assert report[graph]["largest_difference_beyond_rounding"] <= TOLERANCE
        assert report[graph]["largest_logit_among_them"] < TOLERANCE
        assert report[graph]["mask_pixels"] == 204 * 80 * 80 and report[graph]["largest_logit"] > 50


@slow
@pytest.mark.parametrize(
    "images, lengths", [(1, [1]), (1, [7]), (1, [15]), (1, [3, 15, 1, 8]), (2, [4]), (4, [2, 2, 9]), (3, [5] * 17)]
)
def test_numbers_of_images_expressions_and_words_are_free(graphs, shipped, images, lengths):
    assert_graphs_agree(graphs, shipped, images, lengths)


@slow
def test_padding_changes_nothing(graphs):
    features = graphs.image_half(pixel_values=pictures(2, 160))
    short, mask = expressions(5, 1, 3)
    index, logits = torch.tensor([1, 0, 1]), []
    for width in (5, 9, 15):
        ids, longer = expressions(5, 1, 3, width=width, seed=width)  # of padding the ids are random
        ids[longer.bool()] = short[mask.bool()]
        logits.append(
            graphs.text_half(image_features=features, image_index=index, input_ids=ids, attention_mask=longer)
        )
    for other in logits[1:]:
        assert np.allclose(logits[0], other, atol=TOLERANCE)


@slow
def test_a_folder_holds_what_a_server_needs_and_nothing_half_written(folder):
    beside = {"onnx_segmenter.py", "report.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert {file.name for file in folder.iterdir()} == {*GRAPHS, *beside}
    assert [path.name for path in folder.parent.iterdir()] == ["scenes"]


def answers_of_the_pipeline(shipped, folder, image, threshold=0.5, **settings) -> list[dict]:
    """What the pipeline says, with the image processor that resizes as the segmenter does."""
    processor = M3DecProcessor.from_pretrained(folder)
    image_processor = M3DecImageProcessorPil.from_pretrained(folder, **settings)
    processor = M3DecProcessor(image_processor, processor.tokenizer, max_words=processor.max_words)
    pipe = ReferringImageSegmentationPipeline(model=shipped, processor=processor, device="cpu")
    return pipe(image, text=TEXTS, threshold=threshold)


def assert_same_answers(ours: list[dict], theirs: list[dict]):
    assert [answer["label"] for answer in ours] == [answer["label"] for answer in theirs]
    assert any(np.asarray(answer["mask"]).any() for answer in theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one["mask"].mode, one["mask"].size) == ("L", other["mask"].size)
        assert np.mean(np.asarray(one["mask"]) != np.asarray(other["mask"])) < 1e-4
        assert type(one["score"]) is float and one["score"] == pytest.approx(other["score"], abs=1e-5)


@slow
@pytest.mark.parametrize("threshold", [0.5, 0.35])
def test_the_segmenter_answers_as_the_pipeline(segmenter, shipped, folder, threshold):
    image = SCENE.image.resize((333, 217))
    assert_same_answers(
        segmenter(image, text=TEXTS, threshold=threshold), answers_of_the_pipeline(shipped, folder, image, threshold)
    )


@slow
@pytest.mark.parametrize("size", [(333, 217), (90, 301), (160, 160)])
def test_the_segmenter_letterboxes_as_the_pipeline(shipped, folder, tmp_path, size):
    from m3dec.hub.runtimes.onnx_segmenter import OnnxReferringSegmenter

    letterboxed = shutil.copytree(folder, tmp_path / "letterboxed")
    settings = json.loads((letterboxed / "processor_config.json").read_text())
    settings["image_processor"]["do_letterbox"] = True
    (letterboxed / "processor_config.json").write_text(json.dumps(settings))
    image = SCENE.image.resize(size)
    theirs = answers_of_the_pipeline(shipped, letterboxed, image, threshold=0.2, do_letterbox=True)
    ours = OnnxReferringSegmenter(letterboxed, threads=1)(image, text=TEXTS, threshold=0.2)
    assert_same_answers(ours, theirs)


@hypothesis_settings(deadline=None, derandomize=True)
@given(height=st.integers(1, 400), width=st.integers(1, 400), cells=st.integers(2, 24), seed=st.integers(0, 9))
def test_the_segmenters_own_letterbox_is_the_packages(height, width, cells, seed, segmenter_module):
    size, canvas = (height, width), (96, 96)
    assert segmenter_module.letterbox_box(height, width, canvas) == letterbox_box(height, width, canvas)
    logit = np.random.default_rng(seed).normal(size=(cells, cells)).astype(np.float32)
    expected = inside_letterbox(torch.from_numpy(logit), *size, canvas).numpy()
    np.testing.assert_allclose(segmenter_module.inside_letterbox(logit, size, canvas), expected, atol=1e-5)


@slow
def test_an_image_is_encoded_once(segmenter):
    segmenter.cache_size = 2
    encoded, run = [], segmenter.image_half.run

    def counted(names, inputs):
        encoded.append(inputs["pixel_values"].shape)
        return run(names, inputs)

    segmenter.image_half = SimpleNamespace(run=counted)
    first, second, third = SCENE.image, SCENE.image.rotate(90), SCENE.image.rotate(180)
    together = segmenter(first, text=TEXTS)
    assert_same_answers([segmenter(np.asarray(first), text=text)[0] for text in TEXTS], together)
    assert encoded == [(1, 3, 160, 160)]
    segmenter(second, text="cup")
    segmenter(first, text="cup")  # the second is now the one unused for longest
    segmenter(third, text="cup")
    assert len(encoded) == 3
    segmenter(first, text="cup")
    assert len(encoded) == 3
    segmenter(second, text="cup")
    assert len(encoded) == 4


WITHOUT_TORCH = """
import json, sys
for name in ("torch", "torchvision", "transformers", "m3dec", "pycocotools"):
    sys.modules[name] = None
from onnx_segmenter import OnnxReferringSegmenter
answers = OnnxReferringSegmenter(".", threads=1)(sys.argv[1], text=json.loads(sys.argv[2]))
print(json.dumps([[answer["label"], answer["score"], answer["mask"].histogram()[255]] for answer in answers]))
"""


@slow
def test_the_segmenter_in_the_folder_needs_no_torch(folder, segmenter, tmp_path):
    SCENE.image.save(tmp_path / "scene.png")
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "scene.png"), json.dumps(TEXTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-2000:]
    here = [
        [answer["label"], answer["score"], answer["mask"].histogram()[255]] for answer in segmenter(SCENE.image, TEXTS)
    ]
    assert json.loads(done.stdout) == here


@slow
@pytest.mark.parametrize(
    "image, text, threshold, message",
    [
        (SCENE.image, None, 0.5, "text must be an expression"),
        (SCENE.image, [], 0.5, "text must be an expression"),
        (SCENE.image, ["cup", 3], 0.5, "text must be an expression"),
        (SCENE.image, " … ", 0.5, "at least one word"),
        (SCENE.image, "cup", 1.0, "threshold must be a probability"),
        (SCENE.image, "cup", float("nan"), "threshold must be a probability"),
        ("missing.png", "cup", 0.5, "Pillow can read whole"),
        ("http://127.0.0.1:9/a.png", "cup", 0.5, "Pillow can read whole"),
        (Path(__file__), "cup", 0.5, "Pillow can read whole"),
        ([SCENE.image], "cup", 0.5, "of type list"),
        (b"bytes", "cup", 0.5, "of type bytes"),
        (np.zeros((4, 4, 3), np.float32), "cup", 0.5, "float32 of shape"),
        (np.zeros((4, 0, 3), np.uint8), "cup", 0.5, "uint8 of shape"),
    ],
)
def test_the_segmenter_refuses_in_a_message(segmenter, image, text, threshold, message):
    with pytest.raises(ValueError, match=message):
        segmenter(image, text=text, threshold=threshold)


@slow
def test_the_segmenter_tells_what_its_folder_lacks(folder, tmp_path):
    from m3dec.hub.runtimes.onnx_segmenter import OnnxReferringSegmenter

    shutil.copyfile(folder / "image_half.onnx", tmp_path / "image_half.onnx")
    with pytest.raises(FileNotFoundError, match=r"text_half\.onnx"):
        OnnxReferringSegmenter(tmp_path)


def odd_images(folder: Path) -> dict:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 256, (13, 17, 4), np.uint8)
    turned, exif = Image.fromarray(rgba[..., :3]), Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    Image.fromarray(rng.integers(0, 2**16, (13, 17), np.uint16)).save(folder / "sixteen.png")
    Image.fromarray(rgba).quantize(7).save(folder / "palette.png", transparency=2)
    return {
        "RGBA": Image.fromarray(rgba),
        "LA": Image.fromarray(rgba).convert("LA"),
        "CMYK": Image.fromarray(rgba[..., :3]).convert("CMYK"),
        "1": Image.fromarray(rgba[..., 0]).convert("1"),
        "gray": rgba[..., 0],
        "one channel": rgba[..., :1],
        "four channels": rgba,
        **{path.name: path for path in sorted(folder.iterdir())},
    }


def test_the_segmenter_reads_odd_images_as_the_package(tmp_path):
    need_onnx()
    from m3dec.hub.runtimes import onnx_segmenter

    for name, image in odd_images(tmp_path).items():
        assert np.array_equal(onnx_segmenter.rgb_array(image), rgb_array(image)), name


def quick_graphs(model, folder):
    """In the place of write_graphs."""
    for name in GRAPHS:
        (folder / name).write_text(f"for {model.config.image_size}")


def quick_comparison(*arguments) -> dict:
    part = {"largest_logit": 2.0, "largest_logit_difference": 1e-6, "largest_difference_beyond_rounding": 1e-6}
    part |= {"mask_pixels": 9, "mask_pixels_that_differ": 0, "largest_logit_among_them": 0.0}
    return {"expressions": 1, "halves": part, "whole": part, "tolerance": 1e-4, "agrees": True}


def test_files_are_replaced_and_others_stay(tmp_path, monkeypatch):
    need_onnx()
    monkeypatch.setattr(export_onnx, "write_graphs", quick_graphs)
    monkeypatch.setattr(export_onnx, "compare", quick_comparison)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("mine.txt", "model.onnx", "report.json"):  # an earlier export, and something else
        (folder / name).write_text("before")
    model = model_of("lstm")
    export_onnx.export_onnx(model, word_processor(size=96), folder)  # not the model's own 64
    assert (folder / "mine.txt").read_text() == "before" and (folder / "model.onnx").read_text() == "for 96"
    assert model.config.image_size == 64 and json.loads((folder / "report.json").read_text())["agrees"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_model_or_a_file_in_the_way_is_refused_before_anything_is_written(tmp_path):
    need_onnx()
    model = shutil.copytree(SHIPPED_CHECKPOINT, tmp_path / "model")
    (tmp_path / "file").write_text("mine")
    for place in (model, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="need a folder of their own"):
            export_onnx.export_onnx(SHIPPED_CHECKPOINT, None, place)
    assert {path.name for path in model.iterdir()} == {path.name for path in SHIPPED_CHECKPOINT.iterdir()}


def test_an_export_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    need_onnx()

    def fail(model, folder):
        (folder / "model.onnx").write_text("half")
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(export_onnx, "write_graphs", fail)
    for name in ("there", "new"):
        (tmp_path / "there").mkdir(exist_ok=True)
        (tmp_path / "there" / "model.onnx").write_text("before")
        (tmp_path / "there" / "report.json").write_text("{}")
        with pytest.raises(RuntimeError, match="the disk is full"):
            export_onnx.export_onnx(model_of("lstm"), word_processor(), tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there" / "model.onnx").read_text() == "before"


@pytest.mark.parametrize("agrees, words", [(True, "They agree"), (False, "DO NOT AGREE")])
def test_the_command_line_prints_a_table_and_says_whether_they_agree(agrees, words, tmp_path, monkeypatch, capsys):
    need_onnx()
    monkeypatch.setattr(export_onnx, "write_graphs", quick_graphs)
    monkeypatch.setattr(export_onnx, "compare", lambda *_: quick_comparison() | {"agrees": agrees})
    with nullcontext() if agrees else pytest.raises(SystemExit, match="do not agree with the model"):
        export_model([str(SHIPPED_CHECKPOINT), str(tmp_path / "new"), "--onnx"])
    printed = capsys.readouterr().out
    assert words in printed and "| halves | 2.0 | 1.0e-06 | 1.0e-06 | 9 | 0 | 0.0e+00 |" in printed


def test_a_missing_package_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(export_onnx, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(ModuleNotFoundError, match=r"need onnxscript: pip install 'm3dec\[onnx\]'"):
        export_onnx.export_onnx(SHIPPED_CHECKPOINT, None, tmp_path / "new")


def test_a_model_without_a_folder_needs_its_processor(tmp_path):
    need_onnx()
    with pytest.raises(ValueError, match="needs its processor"):
        export_onnx.export_onnx(model_of("lstm"), None, tmp_path / "new")


def test_agreement_sees_a_logit_and_a_mask_that_differ():
    expected = np.array([[-200.0, -0.5, 0.25], [3.0, 0.001, 40.0]], np.float32)
    logits = np.array([[-200.5, -0.5, 0.25], [3.0, -0.002, 40.0]], np.float32)
    found = export_onnx.agreement(expected, logits)
    assert found.pop("largest_difference_beyond_rounding") == pytest.approx(0.5 - 0.002)
    assert found.pop("largest_logit_among_them") == pytest.approx(0.001)
    whole = {"mask_pixels": 6, "mask_pixels_that_differ": 1}
    assert found == {"largest_logit": 200.0, "largest_logit_difference": 0.5, **whole}


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@torch.no_grad()
def test_a_recurrent_network_is_one_operator_for_any_number_of_words(kind, tmp_path):
    need_onnx()
    import onnx
    import onnxruntime

    torch.manual_seed(0)
    network = getattr(torch.nn, kind)(5, 7, batch_first=True)
    torch.onnx.export(
        export_onnx.OnnxRecurrent(network).eval(),
        (torch.zeros(3, 4, 5),),
        tmp_path / "network.onnx",
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: Dim("expressions"), 1: Dim("words")},),
    )
    assert [node.op_type for node in onnx.load(tmp_path / "network.onnx").graph.node].count(kind) == 1
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx")
    for shape in [(1, 1, 5), (2, 15, 5), (11, 3, 5)]:
        vectors = torch.randn(shape)
        (states,) = session.run(None, {session.get_inputs()[0].name: vectors.numpy()})
        torch.testing.assert_close(torch.from_numpy(states), network(vectors)[0], rtol=0, atol=1e-6)


# Each value of each variant stands in one of these.
VARIANTS = {
    "gru, independent, no interaction, concatenated": {
        "recurrent_type": "gru",
        "mutual_attention": "independent",
        "interaction": "none",
        "mask_decoder": "concatenated",
    },
    "LAV alone, static interaction, decoder only": {
        "mutual_attention": "language_attended_vision",
        "interaction": "static",
        "mask_decoder": "decoder_only",
    },
    "VAL alone, stride 8, one upsampling": {
        "mutual_attention": "vision_attended_language",
        "feature_stride": 8,
        "num_mask_upsamplings": 1,
    },
    "swin and bert": {"backbone_config": TINY_SWIN, "text_config": TINY_BERT},
}


@slow
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_can_be_exported(name, tmp_path):
    need_onnx()
    model = tiny_model(**VARIANTS[name])
    export_onnx.write_graphs(model, tmp_path)
    for images, lengths in [(1, [1]), (1, [20]), (3, [4, 2, 9, 1, 20]), (2, [6, 6])]:
        assert_graphs_agree(loaded(tmp_path), model, images, lengths)


def inputs_of(images: int, lengths: list[int], width: int, seed: int = 0) -> dict[str, torch.Tensor]:
    ids, mask = expressions(*lengths, width=width, seed=seed)
    index = torch.arange(len(lengths)) % images
    words = {"input_ids": ids, "attention_mask": mask, "image_index": index}
    return {"pixel_values": pictures(images, seed=seed), **words}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="lstm"),
        pytest.param({"text_config": TINY_BERT}, id="bert", marks=slow),
        pytest.param(VARIANTS["swin and bert"], id="swin and bert", marks=slow),
    ],
)
@torch.no_grad()
def test_torch_export_takes_the_model_with_free_numbers_of_images_and_expressions(settings):
    """And of words, where no recurrent network is unrolled; there all expressions are padded alike."""
    model, any_words = tiny_model(**settings), "text_config" in settings
    images, texts = Dim("images", min=1), Dim("texts", min=1)
    words = Dim("words", min=1, max=20) if any_words else None
    free = {"input_ids": {0: texts, 1: words}, "attention_mask": {0: texts, 1: words}, "image_index": {0: texts}}
    free = {"pixel_values": {0: images}, **free}
    program = torch.export.export(model, (), inputs_of(3, [4, 2, 9, 1, 3], 12), dynamic_shapes=free)
    for number, lengths in [(1, [1]), (2, [3, 12, 1, 1]), (4, [5] * 9)]:
        inputs = inputs_of(number, lengths, max(lengths) if any_words else 12, seed=1)
        torch.testing.assert_close(program.module()(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["the paper's", *(pytest.param(name, marks=slow) for name in VARIANTS)])
@torch.no_grad()
def test_torch_compile_makes_one_graph_and_a_second_one_for_any_other_numbers(name):
    """The tracing alone, which is where a graph breaks: this backend runs torch's own operators."""
    model = tiny_model(**VARIANTS.get(name, {}))
    torch.compiler.reset()
    graphs = []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    with torch._dynamo.config.patch(allow_rnn=True):  # torch leaves its graph at every nn.LSTM unless told otherwise
        compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend=backend)
        for number, lengths in [(3, [4, 2, 9, 1, 3]), (2, [3, 12, 1, 4]), (4, [5] * 9), (5, [6] * 3)]:
            inputs = inputs_of(number, lengths, 12, seed=1)
            torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-6)
    assert len(graphs) == 2
