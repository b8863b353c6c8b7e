"""What an inference endpoint answers: the pipeline's masks as PNG or run lengths, and a message where it cannot."""

import base64
import json
import os
import socket
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from transformers import pipeline

from m3dec.hub import SHIPPED_CHECKPOINT
from m3dec.hub.outward.export import export, imports
from m3dec.hub.runtimes import handler
from m3dec.processing.referring_data.scenes import draw_scene

SCENE = draw_scene(seed=11)
TEXTS = [expression.sent for expression in SCENE.expressions[:3]]


def in_base64(image: Image.Image, kind: str = "PNG") -> str:
    file = BytesIO()
    image.save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def png_header(width: int, height: int) -> str:
    """A PNG file that claims a size and holds next to nothing."""
    size = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    chunks = [size, b"IDAT" + zlib.compress(b""), b"IEND"]
    whole = [(len(one) - 4).to_bytes(4, "big") + one + zlib.crc32(one).to_bytes(4, "big") for one in chunks]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(whole)).decode()


IMAGE = in_base64(SCENE.image)


@pytest.fixture(scope="module")
def endpoint() -> handler.EndpointHandler:
    return handler.EndpointHandler(str(SHIPPED_CHECKPOINT))


@pytest.fixture(scope="module")
def expected() -> list[dict]:
    pipe = pipeline("referring-image-segmentation", model=SHIPPED_CHECKPOINT)
    return pipe(SCENE.image, text=TEXTS)


def test_a_reply_holds_the_pipelines_masks_as_png(endpoint, expected):
    reply = json.loads(json.dumps(endpoint({"inputs": {"image": IMAGE, "text": TEXTS}})))
    assert [sorted(answer) for answer in reply] == [["label", "mask", "score"]] * 3
    for answer, theirs in zip(reply, expected, strict=True):
        mask = Image.open(BytesIO(base64.b64decode(answer["mask"])))
        assert np.array_equal(np.asarray(mask.convert("L")), np.asarray(theirs["mask"]))
        assert (answer["label"], answer["score"]) == (theirs["label"], theirs["score"])
    assert any(np.asarray(theirs["mask"]).any() for theirs in expected)


def test_a_reply_holds_run_lengths_where_they_are_asked_for(endpoint, expected):
    reply = endpoint({"inputs": {"image": IMAGE, "text": TEXTS}, "parameters": {"mask_format": "rle"}})
    for answer, theirs in zip(json.loads(json.dumps(reply)), expected, strict=True):
        assert np.array_equal(coco_mask.decode(answer["mask"]) * 255, np.asarray(theirs["mask"]))


def test_one_expression_a_data_url_and_a_threshold(endpoint):
    inputs = {"image": "data:image/jpeg;base64," + in_base64(SCENE.image, "JPEG"), "text": TEXTS[0]}
    areas = []
    for threshold in (0.01, 0.99):
        request = {"inputs": inputs, "parameters": {"threshold": threshold, "mask_format": "rle"}}
        [answer] = endpoint(request)
        areas.append(coco_mask.area(answer["mask"]))
    assert areas[0] > areas[1] > 0


REFUSED = {
    "no object": ([], "inputs is no object"),
    "nothing": ({}, "inputs is no object"),
    "a bare image": ({"inputs": IMAGE}, "inputs is no object"),
    "no text": ({"inputs": {"image": IMAGE}}, r"keys \['image'\]"),
    "a number for a text": ({"inputs": {"image": IMAGE, "text": 3}}, "text must be an expression"),
    "numbers for texts": ({"inputs": {"image": IMAGE, "text": ["cup", 3]}}, "text must be an expression"),
    "no expression": ({"inputs": {"image": IMAGE, "text": []}}, "1 to 64 expressions"),
    "many expressions": ({"inputs": {"image": IMAGE, "text": ["cup"] * 65}}, "here are 65"),
    "a long expression": ({"inputs": {"image": IMAGE, "text": "cup " * 300}}, "the longest of 1200"),
    "no word": ({"inputs": {"image": IMAGE, "text": " … "}}, "at least one word"),
    "an array": ({"inputs": {"image": [[1, 2]], "text": "cup"}}, "of type list"),
    "a URL": ({"inputs": {"image": "http://127.0.0.1:9/a.png", "text": "cup"}}, "No path and no URL"),
    "a path": ({"inputs": {"image": str(SHIPPED_CHECKPOINT / "answers.png"), "text": "cup"}}, "No path and no URL"),
    "not ASCII": ({"inputs": {"image": "ä" * 8, "text": "cup"}}, "No path and no URL"),
    "no image": ({"inputs": {"image": base64.b64encode(b"GIF89a").decode(), "text": "cup"}}, "47 49 46 38 39 61"),
    "PostScript": ({"inputs": {"image": base64.b64encode(b"%!PS-Adobe-3.0 EPSF").decode(), "text": "cup"}}, "JPEG"),
    "half an image": ({"inputs": {"image": IMAGE[: len(IMAGE) // 8 * 4], "text": "cup"}}, "read whole"),
    "many bytes": ({"inputs": {"image": "A" * (24 * 2**20), "text": "cup"}}, "at most 16,777,216 bytes"),
    "many pixels": ({"inputs": {"image": png_header(40000, 40000), "text": "cup"}}, "40,000,000 pixels"),
    "some more pixels": ({"inputs": {"image": png_header(9000, 9000), "text": "cup"}}, "40,000,000 pixels"),
    "many masks": ({"inputs": {"image": png_header(5000, 5000), "text": ["cup"] * 9}}, "200,000,000"),
    "a threshold of 1": ({"inputs": {"image": IMAGE, "text": "cup"}, "parameters": {"threshold": 1}}, "threshold"),
    "NaN": ({"inputs": {"image": IMAGE, "text": "cup"}, "parameters": {"threshold": float("nan")}}, "threshold"),
    "a word": ({"inputs": {"image": IMAGE, "text": "cup"}, "parameters": {"threshold": "high"}}, "threshold"),
    "a format": ({"inputs": {"image": IMAGE, "text": "cup"}, "parameters": {"mask_format": "gif"}}, "'png' or"),
    "a misspelt one": ({"inputs": {"image": IMAGE, "text": "cup"}, "parameters": {"treshold": 0.4}}, "treshold"),
    "a list": ({"inputs": {"image": IMAGE, "text": "cup"}, "parameters": [0.4]}, "parameters is an object"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_told_in_a_message(name, endpoint, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    request, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as raised:
        endpoint(request)
    assert len(str(raised.value)) < 500


def test_the_handler_imports_only_what_an_endpoint_has():
    allowed = {"torch", "transformers", "numpy", "PIL"}
    names = {name.split(".")[0] for name in imports(Path(handler.__file__).read_text())}
    assert names <= allowed | sys.stdlib_module_names


ELSEWHERE = """
import json, sys
class WithoutPackage:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "m3dec":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, WithoutPackage())
sys.path.insert(0, sys.argv[1])
from handler import EndpointHandler
print(json.dumps(EndpointHandler(sys.argv[1])(json.load(sys.stdin))))
"""


def test_the_handler_of_an_exported_folder_answers_where_the_package_is_not_installed(tmp_path, expected):
    flat = export(SHIPPED_CHECKPOINT, tmp_path / "flat")
    request = {"inputs": {"image": IMAGE, "text": TEXTS}, "parameters": {"mask_format": "rle"}}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-W", "ignore", "-c", ELSEWHERE, str(flat)]
    done = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-3000:]
    reply = json.loads(done.stdout.splitlines()[-1])
    for answer, theirs in zip(reply, expected, strict=True):
        assert np.array_equal(coco_mask.decode(answer["mask"]) * 255, np.asarray(theirs["mask"]))
