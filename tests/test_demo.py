"""The page: what it answers, by itself; then the real server, asked by gradio's client and by a real browser."""

import asyncio
import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_bad_input import GOOD_PICTURES, bomb, photo, saved, truncated, written
from test_pipeline_m3dec import tiny_model
from test_processing_m3dec import bert_processor, word_processor
from transformers import pipeline

from m3dec.examples import PHOTOGRAPHS, demo
from m3dec.examples.demo import Answer, ImageModel, Timing, expressions_of, read_image
from m3dec.hub import PHOTOS_CHECKPOINT, SCENES_CHECKPOINT
from m3dec.processing.image_processing_m3dec import M3DecImageProcessor
from m3dec.processing.images import rgb_array
from m3dec.processing.referring_data.scenes import draw_scene
from m3dec.processing.referring_data.schema import decode_mask, encode_mask

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_gradio = pytest.mark.skipif(
    find_spec("gradio") is None, reason='gradio is not installed: pip install "m3dec[demo]"'
)
QUESTIONS = ["the red heart", "the leftmost thing", "the small zorp", "the green star that is not large", "heart"]


@pytest.fixture(scope="module")
def pipe():
    return pipeline("referring-image-segmentation", model=SCENES_CHECKPOINT)


@pytest.fixture
def scenes_model() -> ImageModel:
    return ImageModel(SCENES_CHECKPOINT)


def scene(number: int) -> np.ndarray:
    return np.array(draw_scene(seed=7, index=number).image)


# ---- Questions and answers, without gradio -------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_answers_are_the_pipelines_whether_the_image_is_new_or_remembered(scenes_model, pipe, threshold):
    expected = pipe(Image.fromarray(scene(0)), text=QUESTIONS, threshold=threshold)
    for remembered in (False, True):
        answers, timing = scenes_model.ask(scene(0), QUESTIONS, threshold)
        assert timing.remembered is remembered
        for answer, one in zip(answers, expected, strict=True):
            assert (answer.expression, answer.score) == (one["label"], one["score"])
            np.testing.assert_array_equal(answer.mask * 255, one["mask"])
            assert answer.found is (one["mask"].getbbox() is not None)


def test_an_image_is_encoded_once_however_often_it_is_asked_about(scenes_model, monkeypatch):
    encoded = []
    encode = scenes_model.model.get_image_features
    monkeypatch.setattr(scenes_model.model, "get_image_features", lambda *x, **y: encoded.append(1) or encode(*x, **y))
    first = scenes_model.ask(scene(0), QUESTIONS[:1])[1]
    second = scenes_model.ask(scene(0), QUESTIONS[1:], threshold=0.3)[1]
    scenes_model.attention(scene(0), QUESTIONS[2])
    assert len(encoded) == 1
    assert second.image == first.image > 0  # what it took the first time
    scenes_model.ask(scene(0)[:, ::-1], QUESTIONS[:1])
    assert len(encoded) == 2


def test_the_image_that_was_not_asked_about_for_longest_is_forgotten(scenes_model, monkeypatch):
    monkeypatch.setattr(scenes_model.segmenter, "remembered_images", 2)
    asked = [scenes_model.ask(scene(number), ["heart"])[1].remembered for number in (0, 1, 0, 2, 0, 1)]
    assert asked == [False, False, True, False, True, False]


@pytest.fixture(scope="module", params=["stretched", "letterboxed", "BERT's pieces"])
def tiny(request, tmp_path_factory) -> ImageModel:
    """A small model of random weights, with each kind of processor."""
    folder = tmp_path_factory.mktemp("tiny")
    processor = word_processor(max_words=6) if request.param != "BERT's pieces" else bert_processor(max_words=6)
    if request.param == "letterboxed":
        processor.image_processor = M3DecImageProcessor(size={"height": 64, "width": 64}, do_letterbox=True)
    else:
        processor.image_processor = M3DecImageProcessor(size={"height": 64, "width": 64})
    tiny_model().save_pretrained(folder)
    processor.save_pretrained(folder)
    return ImageModel(folder)


def test_a_mask_is_where_the_probability_is_above_the_threshold(tiny):
    image = np.random.default_rng(0).integers(0, 256, (40, 90, 3), np.uint8)
    answers, _ = tiny.ask(image, ["the red cup", "left"], threshold=0.5)
    for answer in answers:
        np.testing.assert_array_equal(tiny.probability(answer, (40, 90)) > 0.5, answer.mask)
        assert tiny.probability(answer, (20, 45)).shape == (20, 45)


def test_attention_is_the_models_and_each_word_has_its_row(tiny):
    scores, words = tiny.attention(scene(0), "The red ZORP cup")
    inputs = tiny.processor(images=scene(0), text="The red ZORP cup")
    with torch.inference_mode():
        expected = torch.stack(tiny.model(**inputs, output_attentions=True).mutual_attentions)[:, 0]
    np.testing.assert_array_equal(scores, expected)
    assert [word for word in words if not word.startswith("[")] == ["The", "red", "ZORP", "cup"]
    assert scores.shape == (2, len(words), 16)


def test_the_frame_of_the_attention_is_what_the_network_saw(tiny):
    image = photo(30, 60)
    seen = tiny.as_seen(image)
    if not tiny.processor.image_processor.do_letterbox:
        assert seen is image
        return
    assert seen.size == (64, 64)
    grey = (np.asarray(seen) == 128).all(axis=2)
    assert grey[:16].all() and grey[48:].all() and not grey[16:48].any()


def test_words_that_the_model_does_not_know_or_does_not_read_are_named(tiny):
    answers, _ = tiny.ask(scene(0), ["the Zorp cup zorp", "the red " + "cup " * 20, "red cup"])
    assert [answer.unknown_words for answer in answers] == [["Zorp", "zorp"], [], []]
    assert answers[0].unread_words == answers[2].unread_words == ""
    assert answers[1].unread_words in (" ".join(["cup"] * 16), " ".join(["cup"] * 18))  # BERT's [CLS] and [SEP] count
    assert "not read: cup cup" in demo.answers_html(tiny, answers, 0.5)


@pytest.mark.parametrize("name", GOOD_PICTURES)
def test_an_unusual_upload_is_read_as_the_pipeline_reads_it(name, tmp_path):
    path = GOOD_PICTURES[name][0](tmp_path)
    np.testing.assert_array_equal(read_image(path), rgb_array(path))


def too_large(path: Path) -> Path:
    """144 million pixels in a few kilobytes."""
    return saved(Image.new("1", (12_000, 12_000)), path)


def program(path: Path) -> Path:
    return written(path, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


# name: (how the file is made, what the sentence says)
BAD_UPLOADS = {
    "truncated": (lambda p: truncated(p / "a.jpg"), "the image is not.* truncated"),
    "40,000 x 40,000": (lambda p: bomb(p / "a.png"), "at most 40,000,000 pixels"),
    "144 megapixels": (lambda p: too_large(p / "a.png"), "at most 40,000,000 pixels, but this has 12,000 x 12,000"),
    "empty": (lambda p: written(p / "a.png", b""), "of 0 bytes, cannot be opened as such"),
    "text": (lambda p: written(p / "a.png", b"hello, world"), "is a BMP, GIF, JPEG.* of 12 bytes, cannot be opened"),
    "PostScript": (lambda p: program(p / "a.png"), "cannot be opened as such"),
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_a_bad_upload_gives_a_sentence_without_the_servers_paths(name, tmp_path):
    make, message = BAD_UPLOADS[name]
    with pytest.raises(ValueError, match=message) as caught:
        read_image(make(tmp_path))
    assert str(tmp_path) not in str(caught.value) and "BytesIO" not in str(caught.value)


def test_no_image_a_deleted_one_and_one_of_too_many_bytes_give_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="An image is needed"):
        read_image(None)
    with pytest.raises(ValueError, match="Upload it again"):
        read_image(tmp_path / "gone.png")
    monkeypatch.setattr(demo, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 bytes, but this has"):
        read_image(saved(photo(), tmp_path / "a.png"))


def test_expressions_are_the_lines_that_hold_something():
    assert expressions_of("  the red mug \n\n\t\nthe\ud800 cup\r\n") == ["the red mug", "the? cup"]


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "Say what to look for"), (" \n ", "Say what"), ("a\n" * 9, "At most 8 .* 9"), ("a" * 20_001, "20,001")],
)
def test_no_expression_or_too_many_give_a_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        expressions_of(text)


def an_answer(expression="a", mask=None, **others) -> Answer:
    mask = np.zeros((4, 6), bool) if mask is None else mask
    settings = {"score": 0.0, "logits": torch.full((2, 2), -1.0), "unknown_words": [], "unread_words": ""}
    return Answer(expression, mask, **{**settings, **others})


def test_the_table_says_nothing_found_and_how_near_it_was(scenes_model):
    html = demo.answers_html(scenes_model, [an_answer()], 0.5)
    assert "nothing found" in html and "no pixel is above 0.50; the highest probability is 0.27" in html
    found = demo.answers_html(scenes_model, [an_answer(mask=np.eye(4, 6, dtype=bool), score=0.917)], 0.5)
    assert "nothing found" not in found and "0.92" in found and "16.7%" in found


def test_what_is_typed_cannot_become_part_of_the_page(scenes_model):
    html = demo.answers_html(scenes_model, [an_answer("<img src=x>", unknown_words=["<b>"], unread_words="<i>")], 0.5)
    assert "<img" not in html and "<b>&" not in html and "&lt;img src=x&gt;" in html and html.count("<i>") == 0


def test_the_timing_tells_the_image_from_the_expressions():
    new = demo.timing_text(Timing(image=90.0, remembered=False, expressions=30.0), 3)
    again = demo.timing_text(Timing(image=90.0, remembered=True, expressions=30.0), 1)
    assert "encoded in **90.0 ms**" in new and "3 in **30.0 ms**, 10.0 ms each" in new
    assert "**not encoded again**" in again and "each" not in again


def test_answers_as_json_hold_the_masks_as_run_lengths():
    mask = np.eye(4, 6, dtype=bool)
    data = demo.as_json([an_answer("x", mask), an_answer("y")], Timing(1.0, True, 2.0), 0.4, "best")
    data = json.loads(json.dumps(data))
    assert (data["model"], data["threshold"], data["height"], data["width"]) == ("best", 0.4, 4, 6)
    np.testing.assert_array_equal(decode_mask(data["answers"][0]["mask"]), mask)
    assert [answer["found"] for answer in data["answers"]] == [True, False]


def test_without_gradio_the_program_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r'pip install "m3dec\[demo\]"'):
        demo.main([])


@needs_gradio
def test_without_a_model_the_page_is_about_the_checkpoint_for_photographs(monkeypatch):
    loaded = []

    def refuse(folder):
        loaded.append(folder)
        raise ValueError("enough")

    monkeypatch.setattr(demo, "ImageModel", refuse)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(SystemExit, match="enough"):
        demo.main([])
    assert loaded == [str(PHOTOS_CHECKPOINT)]


def test_a_visitor_is_told_what_a_model_is_for(tmp_path):
    assert "small model for photographs" in demo.about(demo.shown_name(PHOTOS_CHECKPOINT))
    assert "knows drawn scenes only" in demo.about(demo.shown_name(SCENES_CHECKPOINT))
    assert demo.about(demo.shown_name(tmp_path)) == f"Answers are by `{tmp_path}`."


def test_the_examples_are_the_photographs_with_two_or_three_expressions_each(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    examples = demo.example_images()
    assert [Path(path).name for path, _ in examples] == sorted(path.name for path in PHOTOGRAPHS.glob("*.jpg"))
    for path, expressions in examples:
        assert Path(path).parent == tmp_path and read_image(path).shape[2] == 3
        assert len(expressions_of(expressions)) in (2, 3)


@needs_gradio
def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(SystemExit, match=rf"{tmp_path.name}.* has no config\.json"):
        demo.main(["--model", str(tmp_path)])


# ---- The served page, asked by gradio's client ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[tuple[str, int]]:
    """The address of the page with two models, and the number of its process."""
    second = tmp_path_factory.mktemp("second") / "best"
    shutil.copytree(SCENES_CHECKPOINT, second)
    command = [sys.executable, "-u", demo.__file__, "--port", "0", "--model", str(SCENES_CHECKPOINT), str(second)]
    with tempfile.TemporaryDirectory() as uploads:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "TMPDIR": uploads, "HF_HUB_OFFLINE": "1"},
        )
        try:
            line = next(line for line in process.stdout if "http" in line)
            yield line.split()[1].rstrip("/"), process.pid
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=30) == 0
            assert not list(Path(uploads).glob("m3dec-demo-*"))  # uploads are deleted
        finally:
            process.kill()


@pytest.fixture(scope="module")
def ask(server):
    """Ask the page: image, expressions and perhaps threshold and model give what its API gives."""
    from gradio_client import Client, handle_file

    client = Client(server[0], verbose=False)
    return lambda path, *others: client.predict(path and handle_file(path), *others, api_name="/segment")


def plain(data: dict) -> list[tuple]:
    return [(answer["expression"], answer["score"], answer["mask"]) for answer in data["answers"]]


def by_pipeline(pipe, path: Path, expressions: list[str], threshold: float = 0.5) -> list[tuple]:
    answers = pipe(str(path), text=expressions, threshold=threshold)
    return [(one["label"], one["score"], encode_mask(np.asarray(one["mask"]) > 0)) for one in answers]


@needs_gradio
def test_the_api_gives_the_pipelines_answers(ask, pipe, tmp_path):
    path = saved(Image.fromarray(scene(1)), tmp_path / "scene.png")
    data = ask(path, "\n".join(QUESTIONS))
    assert plain(data) == by_pipeline(pipe, path, QUESTIONS)
    assert data["answers"][2]["unknown_words"] == ["zorp"]
    again = ask(path, QUESTIONS[0], 0.3)
    assert plain(again) == by_pipeline(pipe, path, QUESTIONS[:1], 0.3)
    assert again["milliseconds"]["image_was_remembered"] and not data["milliseconds"]["image_was_remembered"]


@needs_gradio
def test_another_model_can_be_chosen_and_an_unknown_one_is_refused(ask, tmp_path):
    from gradio_client.exceptions import AppError

    path = saved(Image.fromarray(scene(2)), tmp_path / "scene.png")
    with pytest.raises(
        AppError, match=r"list of choices: \['m3dec-scenes \(drawn scenes only\)', '(.*best)'\]"
    ) as caught:
        ask(path, "heart", 0.5, "none such")
    second = str(caught.value).split("'")[-2]
    data = ask(path, "heart", 0.5, second)
    assert data["model"] == second and not data["milliseconds"]["image_was_remembered"]
    assert plain(data) == plain(ask(path, "heart"))


@needs_gradio
@pytest.mark.parametrize("name", BAD_UPLOADS)
def test_the_page_answers_a_bad_upload_with_a_sentence_and_goes_on(ask, name, tmp_path):
    from gradio_client.exceptions import AppError

    make, message = BAD_UPLOADS[name]
    with pytest.raises(AppError, match=message):
        ask(make(tmp_path), "heart")
    assert len(ask(saved(photo(), tmp_path / "good.png"), "heart")["answers"]) == 1


@needs_gradio
@pytest.mark.parametrize("name", GOOD_PICTURES)
def test_the_page_answers_about_an_unusual_upload_as_the_pipeline_does(ask, pipe, name, tmp_path):
    path = GOOD_PICTURES[name][0](tmp_path)
    assert plain(ask(path, "the red thing")) == by_pipeline(pipe, path, ["the red thing"])


# what is typed: what the sentence says, or the expressions that are answered
TYPED = {
    "": "Say what to look for",
    "...": r"must hold at least one word, but '\.\.\.'",
    "the heart\n?!": r"but '\?!' holds none",
    "a\n" * 9: "At most 8 expressions",
    "the heart " * 1000: ["the heart " * 999 + "the heart"],
    "x" * 10_000: ["x" * 10_000],
    "zorp blarg": ["zorp blarg"],
    "das rote Herz\n\n红色的心\n<b>heart</b>": ["das rote Herz", "红色的心", "<b>heart</b>"],
}


@needs_gradio
@pytest.mark.parametrize("typed", TYPED, ids=lambda typed: repr(typed[:12]))
def test_whatever_is_typed_gets_a_sentence_or_the_pipelines_answer(ask, pipe, typed, tmp_path):
    from gradio_client.exceptions import AppError

    path, outcome = saved(Image.fromarray(scene(3)), tmp_path / "scene.png"), TYPED[typed]
    if isinstance(outcome, list):
        assert plain(ask(path, typed)) == by_pipeline(pipe, path, outcome)
    else:
        with pytest.raises(AppError, match=outcome):
            ask(path, typed)


def call(address: str, image: dict, expressions="heart") -> str:
    """What the server says to a request that gradio's client would not send."""
    import httpx

    data = {"data": [image, expressions, 0.5, "m3dec-scenes (drawn scenes only)"]}
    event = httpx.post(f"{address}/gradio_api/call/segment", json=data).json()["event_id"]
    return httpx.get(f"{address}/gradio_api/call/segment/{event}", timeout=60).text


def file(**fields) -> dict:
    return {"path": "", "meta": {"_type": "gradio.FileData"}, **fields}


@needs_gradio
def test_no_url_is_fetched_and_no_file_of_the_server_is_read(server):
    url = "http://192.0.2.1/a.png"
    assert "No URL is fetched here" in call(server[0], file(path=url))
    assert "No URL is fetched here" in call(server[0], {"path": ""}, file(path=url))  # not by the text's box either
    for other in (file(url=url), file(url="data:image/png;base64,AAAA"), file(path="/etc/hostname"), url):
        answer = call(server[0], other)
        assert answer.startswith("event: error") and '"answers"' not in answer


@needs_gradio
def test_gradios_download_is_shut(tmp_path):
    gradio = demo.import_gradio()
    with pytest.raises(gradio.Error, match="No URL is fetched here"):
        asyncio.run(
            gradio.processing_utils.async_ssrf_protected_download("https://example.com/a.png", cache_dir=str(tmp_path))
        )


@needs_gradio
def test_an_upload_of_too_many_bytes_is_cut_off(server):
    import httpx

    answer = httpx.post(f"{server[0]}/gradio_api/upload", files={"files": ("a.png", b"x" * (demo.MAX_BYTES + 1))})
    assert answer.status_code == 413 and "File size exceeded" in answer.text


@needs_gradio
def test_the_page_is_bound_to_loopback_and_names_no_foreign_font_or_script(server):
    import re

    import httpx

    assert server[0].startswith("http://127.0.0.1:")
    html = httpx.get(server[0]).text
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*?(?:src|href)=\"(https?:)?//([^/\"]+)", html)
    assert {host for _, host in loaded} <= {server[0].removeprefix("http://")}


def resident(process_id: int) -> int:
    """Kilobytes of memory that a process holds."""
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])


@needs_gradio
@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_two_hundred_mixed_requests_twenty_at_a_time_are_all_right_and_memory_stays(ask, server, pipe, tmp_path):
    from gradio_client.exceptions import AppError

    good = [saved(Image.fromarray(scene(n)), tmp_path / f"{n}.png") for n in range(25)]  # more than are remembered
    large = draw_scene(seed=7, image_size=640).image
    good += [saved(large.convert(mode), tmp_path / f"{mode}.tif") for mode in ("L", "CMYK", "RGBA")]
    bad = [truncated(tmp_path / "bad.jpg"), bomb(tmp_path / "bomb.png"), written(tmp_path / "text.png", b"hello")]
    requests = []
    for number in range(200):
        if number % 10 == 9:
            requests.append((bad[number // 10 % 3], ["heart"], 0.5))
        else:
            first = number % len(QUESTIONS)
            asked = (QUESTIONS + QUESTIONS)[first : first + 1 + number % 3]
            requests.append((good[number % len(good)], asked, [0.5, 0.35][number % 2]))

    def answer(request) -> list | str:
        path, expressions, threshold = request
        try:
            return plain(ask(path, "\n".join(expressions), threshold))
        except AppError as error:
            return str(error)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(answer, requests))  # warm-up
        before = resident(server[1])
        answers = list(pool.map(answer, requests))
    grown = resident(server[1]) / before - 1
    wrong = 0
    for request, given in zip(requests, answers, strict=True):
        if request[0] in bad:
            wrong += not (isinstance(given, str) and "image" in given)
        else:
            wrong += given != by_pipeline(pipe, *request)
    print(f"{len(answers)} requests, {wrong} wrong, {before / 1024:.0f} MB, grown by {grown:.1%}")
    assert wrong == 0
    assert grown < 0.05


# ---- The page in a browser ------------------------------------------------------------------------------------------


class Browser:
    """Headless Chromium that can resolve no name, driven by the DevTools protocol over two pipes.

    Args:
        folder: for its profile and, in `folder/downloads`, what it downloads.
        width: of its window.
    """

    FLAGS = (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --remote-debugging-pipe"
    )

    def __init__(self, folder: Path, width: int = 1280):
        self.downloads = folder / "downloads"
        self.numbers, self.events, self.unread, self.session = itertools.count(1), [], b"", {}
        (to_read, self.requests), (self.answers, to_write) = os.pipe(), os.pipe()

        def connect():
            """Chromium reads commands from 3 and answers to 4."""
            ends = os.dup(to_read), os.dup(to_write)
            os.dup2(ends[0], 3)
            os.dup2(ends[1], 4)

        blocked = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
        command = [CHROMIUM, *self.FLAGS.split(), blocked, f"--user-data-dir={folder / 'profile'}"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=connect, close_fds=False, **quiet)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Runtime"):
            self.send(f"{domain}.enable")
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def send(self, method: str, **params) -> dict:
        """Give one command and wait for its answer; events that come before it are kept."""
        number = next(self.numbers)
        command = {"id": number, "method": method, "params": params, **self.session}
        os.write(self.requests, json.dumps(command).encode() + b"\0")
        while True:
            while b"\0" not in self.unread:
                assert select.select([self.answers], [], [], 60)[0], f"no answer to {method}"
                self.unread += os.read(self.answers, 2**20)
            message, self.unread = self.unread.split(b"\0", 1)
            message = json.loads(message)
            if message.get("id") == number:
                assert "error" not in message, (method, message)
                return message["result"]
            self.events.append(message)

    def run(self, script: str):
        answer = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, (script, answer)
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: int = 60):
        """Until a condition on the page holds."""
        end = time.monotonic() + seconds
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never true: {condition}\n{self.text()}"
            time.sleep(0.1)

    def text(self) -> str:
        return self.run("document.body.innerText")

    def click(self, selector: str, text: str = ""):
        """On the first element of `selector` that holds `text`."""
        found = f"[...document.querySelectorAll({selector!r})].find(e => e.textContent.includes({text!r}))"
        self.wait(found)
        self.run(f"{found}.click()")

    def upload(self, path: Path):
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        box = self.send("DOM.querySelector", nodeId=root, selector="input[type=file]")["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=box, files=[str(path)])

    def type(self, text: str):
        self.run("document.querySelector('#expressions textarea').select()")
        self.send("Input.insertText", text=text)

    def download(self, selector: str) -> Path:
        before = set(self.downloads.glob("*"))
        self.click(selector)
        for _ in range(100):
            new = set(self.downloads.glob("*")) - before
            if new and not any(path.suffix == ".crdownload" for path in new):
                return new.pop()
            time.sleep(0.1)
        raise AssertionError(f"{selector} gave no file")

    def screenshot(self, path: Path):
        """The whole page as a PNG."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        shot = {"format": "png", "captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", **shot)["data"]))

    def addresses(self) -> list[str]:
        """Of all that the page asked for."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        sockets = [event["params"]["url"] for event in self.events if event.get("method") == "Network.webSocketCreated"]
        return [params["request"]["url"] for params in sent] + sockets

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.requests)
        os.close(self.answers)


@pytest.fixture(params=[1280, 420])
def browser(request) -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = Browser(Path(folder), request.param)
        yield browser
        browser.close()


def an_own_image(path: Path) -> Path:
    """An image that no example is: a red square and a blue circle on grey, 300 x 200."""
    image = Image.new("RGB", (300, 200), (120, 120, 120))
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 60, 110, 130), fill=(214, 36, 44))
    draw.ellipse((180, 60, 250, 130), fill=(36, 98, 214))
    return saved(image, path)


@needs_gradio
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_a_browser_that_resolves_no_name_segments_shows_and_downloads(server, pipe, browser, tmp_path):
    address = server[0]
    browser.send("Page.navigate", url=address)
    browser.wait("document.querySelector('#find')")
    assert "knows drawn scenes only" in browser.text()

    name, expressions = demo.EXAMPLES[0]  # a built-in example
    browser.click("tr.tr-body", expressions.splitlines()[0])
    browser.wait("document.querySelector('#answers table') && document.querySelector('#heat img')")
    assert all(expression in browser.text() for expression in expressions.splitlines())
    assert "Image: " in browser.text()
    browser.wait("!document.querySelector('#mask-file').disabled")
    expected = by_pipeline(pipe, PHOTOGRAPHS / name, expressions.splitlines())
    mask = browser.download("#mask-file")
    assert_same_mask(mask, expected[0])
    mask.unlink()  # a browser may write the next one of this name over it, unnoticed
    data = json.loads(browser.download("#answers-file").read_text())
    assert plain(data) == expected

    browser.type("the laptop")  # not asked yet: the details are still of what was
    browser.click("#which label", "2. ")
    masks = (browser.download("#mask-file") for _ in range(20))
    assert_same_mask(next(path for path in masks if "_2_mask" in path.name or path.unlink()), expected[1])

    browser.click("button[role=tab]", "Attention")
    browser.wait("document.querySelector('#attention img')?.naturalWidth > 300")
    browser.screenshot(tmp_path / "page.png")
    assert browser.run("document.documentElement.scrollWidth <= innerWidth")  # no scrolling sideways

    browser.click("#find")  # one expression, while the details are of the second; and another example at once
    other = demo.EXAMPLES[2][1].splitlines()[0]
    browser.click("tr.tr-body", other)
    browser.wait(f"document.querySelector('#answers').innerText.includes('{other}')")

    browser.click("#find")  # once more about the same image
    browser.wait("document.body.innerText.includes('not encoded again')")

    browser.click("#image button[aria-label*='Clear'], #image button[aria-label*='Remove']")
    browser.wait("document.querySelector('input[type=file]') && !document.querySelector('#answers table')")
    own = an_own_image(tmp_path / "own.png")
    browser.upload(own)
    browser.wait("document.querySelector('img[src*=\"own.png\"]')")
    time.sleep(1)  # as people do: the page empties the answer's place first
    browser.type("the blue circle")
    browser.click("#find")
    browser.wait("document.querySelector('#answers').innerText.includes('the blue circle')")
    browser.click("button[role=tab]", "Cut-out")
    browser.wait(
        "document.querySelector('a[href*=\"own_1_mask.png\"]') || !document.querySelector('#mask-file').disabled"
    )
    time.sleep(2)
    [expected] = by_pipeline(pipe, own, ["the blue circle"])
    assert_same_mask(browser.download("#mask-file"), expected)
    cut = np.asarray(Image.open(browser.download("#cut-out-file")))
    np.testing.assert_array_equal(cut[..., 3] > 0, decode_mask(expected[2]))

    asked = browser.addresses()
    assert len(asked) > 30
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []


def assert_same_mask(path: Path, expected: tuple):
    with Image.open(path) as opened:
        assert opened.mode == "L"
        np.testing.assert_array_equal(np.asarray(opened), decode_mask(expected[2]) * 255)
