"""A page on which an image is asked about, in any browser: offline, and on this machine only unless --host says more.

    python examples/demo.py
    python examples/demo.py --model outputs/your_data/best hub/checkpoints/m3dec-photos --port 7860

It needs gradio: pip install "m3dec[demo]". The same from Python:

    from gradio_client import Client, handle_file
    client = Client("http://127.0.0.1:7860")
    client.predict(handle_file("photo.jpg"), "the red mug\\nthe cup behind it", api_name="/segment")
"""

import functools
import io
import json
import os
import shutil
import signal
import socket
import sys
import time
import warnings
from argparse import ArgumentParser
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError
from transformers import pipeline

import m3dec  # noqa: F401 - registers the pipeline
from m3dec.examples import PHOTOGRAPHS
from m3dec.examples.user_errors import exits_with_message
from m3dec.hub import PHOTOS_CHECKPOINT, SCENES_CHECKPOINT
from m3dec.processing.drawing import MASK_COLORS, attention_sheet, cut_out, heat_map, overlay_masks
from m3dec.processing.images import rgb_array
from m3dec.processing.letterbox import inside_letterbox, letterbox_box, letterbox_size
from m3dec.processing.referring_data.schema import encode_mask
from m3dec.processing.segmenter import Segmenter, image_key

MAX_BYTES = 32 * 2**20  # of an upload
MAX_PIXELS = 40_000_000  # of an image; Pillow alone would take four times as many
MAX_EXPRESSIONS = len(MASK_COLORS)  # a color each
MAX_CHARACTERS = 20_000  # of all expressions together
REMEMBERED = 16  # images, by each model
SHOWN_SIDE = 1280  # the longer side of what the page shows; what it gives to download has the image's own size
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow's others may start programs
EXAMPLES = (  # a photograph, and what to look for
    ("astronaut.jpg", "the woman\nher hair"),
    ("cat.jpg", "the cat\nbrown animal"),
    ("coffee.jpg", "cup in the middle\nthe laptop"),  # there is no laptop
    ("photographer.jpg", "the man\nhis hair\nthe coat"),
    ("rocket.jpg", "the rocket\nthe boat"),  # there is no boat
)
BUTTONS = ["download", "fullscreen"]  # of an image; gradio's third shares it with the world
# To the answer, where it stands below the question.
SCROLL = "() => { if (innerWidth < 700) document.querySelector('#answer').scrollIntoView({behavior: 'smooth'}) }"
STYLE = """
.answers table { width: 100%; border-collapse: collapse; }
.answers :is(td, th) { padding: .4em .6em; text-align: left; vertical-align: top; overflow-wrap: anywhere;
  border: solid #8883; border-width: 0 0 1px; }
.answers :is(td, th):nth-child(n+3) { text-align: right; overflow-wrap: normal; }
.answers :is(table, tr) { border: 0 !important; }
.answers i { display: inline-block; width: 1em; height: 1em; border-radius: 3px; border: 1px solid #8888; }
.answers small { display: block; opacity: .75; }
.cut-out img { background: repeating-conic-gradient(#bbb 0% 25%, #eee 0% 50%) 0 0 / 20px 20px; }
td[role=gridcell] { white-space: pre-line; }
footer { display: none !important; }
"""


@exits_with_message
def main(arguments: list[str] | None = None):
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model",
        nargs="+",
        default=[str(PHOTOS_CHECKPOINT)],
        metavar="FOLDER",
        help="one, or several to choose from; default: the checkpoint for photographs that ships with m3dec",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets in everyone who reaches this machine")
    parser.add_argument("--port", type=int, default=7860, help="0 for one that is free")
    arguments = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that uploads are deleted then, too
    with TemporaryDirectory(prefix="m3dec-demo-") as uploads:
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": uploads}
        try:
            gradio = import_gradio()
            models = {shown_name(folder): ImageModel(folder) for folder in arguments.model}
        except (ImportError, ValueError) as error:
            raise SystemExit(str(error)) from error
        page = build_page(models)
        try:
            _, address, _ = page.launch(
                server_name=arguments.host,
                server_port=arguments.port or free_port(arguments.host),
                share=False,
                ssr_mode=False,
                run_history=False,
                max_file_size=MAX_BYTES,
                footer_links=[],
                css=STYLE,
                theme=gradio.themes.Default(
                    primary_hue="blue", font=["system-ui", "sans-serif"], font_mono=["monospace"]
                ),
                quiet=True,
                prevent_thread_lock=True,
            )
        except OSError as error:
            raise SystemExit(
                f"Port {arguments.port} cannot be used; --port 0 takes one that is free. {error}"
            ) from error
        print(f"Open {address} in a browser; Ctrl+C stops.", flush=True)
        page.block_thread()


# ---- What is asked and answered: nothing here knows gradio ----------------------------------------------------------


@dataclass
class Answer:
    """What a model says of one expression."""

    expression: str
    mask: np.ndarray  # (h, w) bool, of the image's size
    score: float  # the mean probability inside the mask, 0.0 where it is empty
    logits: torch.Tensor  # (h', w'), as the network gave them
    unknown_words: list[str]
    unread_words: str  # what stood beyond max_words

    @property
    def found(self) -> bool:
        return bool(self.mask.any())


@dataclass
class Timing:
    """Milliseconds that an answer took: the image's half, once, and the expressions' half."""

    image: float
    remembered: bool  # then `image` is what it took the first time
    expressions: float


class ImageModel:
    """A checkpoint that encodes an image once, however often it is asked about: it remembers the last `REMEMBERED`.

    Args:
        folder: with the model and its processor.

    Raises:
        ValueError: there is no such folder, or it holds no model.
    """

    def __init__(self, folder: str | Path):
        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"--model takes folders of saved models, but {str(folder)!r} has no config.json.")
        try:
            self.pipe = pipeline("referring-image-segmentation", model=str(folder))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"The model in {str(folder)!r} is not whole: {error}") from error
        self.processor, self.model = self.pipe.processor, self.pipe.model
        self.segmenter = Segmenter(self.model, self.processor, REMEMBERED)
        self.milliseconds = {}  # key of an image: what its encoding took
        self.ask(np.zeros((32, 32, 3), np.uint8), ["thing"])  # the first time is slow

    @torch.inference_mode()
    def ask(self, image: np.ndarray, expressions: list[str], threshold: float = 0.5) -> tuple[list[Answer], Timing]:
        """Answer each expression about `image`, (h, w, 3) uint8, as the pipeline does.

        Raises:
            ValueError: an expression holds no word, or the threshold is not between 0 and 1.
        """
        words = self.processor(text=expressions)
        image_features, of_image, remembered = self._encode(image)
        start = time.perf_counter()
        logits = self.segmenter.logits(image_features, **words, image_index=[0] * len(expressions))  # (N, h', w')
        found = self.segmenter.answers(logits, [image.shape[:2]] * len(expressions), threshold)
        timing = Timing(of_image, remembered, milliseconds_since(start))
        answers = [
            Answer(expression, one["mask"], one["score"], logit, *self._not_understood(expression))
            for expression, one, logit in zip(expressions, found, logits, strict=True)
        ]
        return answers, timing

    @torch.inference_mode()
    def attention(self, image: np.ndarray, expression: str) -> tuple[np.ndarray, list[str]]:
        """A_mut of each decoder layer, (layers, T, P) before any softmax, and the T words or pieces of words."""
        inputs = self.processor(text=expression).to(self.model.device)
        outputs = self.model(image_features=self._encode(image)[0], output_attentions=True, **inputs)
        scores = torch.stack([layer[0] for layer in outputs.mutual_attentions]).float().cpu().numpy()
        pieces = self._pieces(expression, self.processor.max_words)
        return scores, [expression[a:b] or name for name, a, b in pieces]

    def probability(self, answer: Answer, size: tuple[int, int]) -> np.ndarray:
        """The probability of each pixel, float32, of the image scaled to `size`, (height, width)."""
        logits = answer.logits
        if self.processor.image_processor.do_letterbox:
            logits = inside_letterbox(logits, *answer.mask.shape, letterbox_size(self.processor.image_processor))
        logits = F.interpolate(logits[None, None], size=size, mode="bilinear", align_corners=False)
        return logits[0, 0].sigmoid().cpu().numpy()

    def as_seen(self, image: Image.Image) -> Image.Image:
        """The image in the frame that the grid of A_mut covers: as it is, or on the canvas of a letterbox."""
        if not self.processor.image_processor.do_letterbox:
            return image
        size = letterbox_size(self.processor.image_processor)
        top, left, height, width = letterbox_box(image.height, image.width, size)
        canvas = Image.new("RGB", size[::-1], "#808080")
        canvas.paste(image.resize((width, height)), (left, top))
        return canvas

    def _encode(self, image: np.ndarray) -> tuple[torch.Tensor, float, bool]:
        """F_enc, (1, P, C), the milliseconds that it took when it was made, and whether it was remembered."""
        remembered, start = self.segmenter.remembers(image), time.perf_counter()
        features = self.segmenter.encode([image])
        if features.is_cuda:
            torch.cuda.synchronize()
        key = image_key(image)
        if not remembered:
            self.milliseconds[key] = milliseconds_since(start)
        return features, self.milliseconds[key], remembered

    def _pieces(self, expression: str, most: int | None = None) -> list[tuple[str, int, int]]:
        """Each token, `most` at most, and the first and last letter that it stands for; 0, 0 if it stands for none."""
        tokenizer = self.processor.tokenizer
        tokens = tokenizer(
            expression, truncation=most is not None, max_length=most, return_offsets_mapping=True, verbose=False
        )
        names = tokenizer.convert_ids_to_tokens(tokens["input_ids"])
        return [(name, *place) for name, place in zip(names, tokens["offset_mapping"], strict=True)]

    def _not_understood(self, expression: str) -> tuple[list[str], str]:
        """The words that the model does not know, and what stands beyond its `max_words`."""
        read = self._pieces(expression, self.processor.max_words)
        unknown = [expression[a:b] for name, a, b in read if name == self.processor.tokenizer.unk_token]
        is_cut = len(self._pieces(expression)) > len(read)
        return list(dict.fromkeys(unknown)), expression[max(b for _, _, b in read) :].strip() if is_cut else ""


def read_image(path: str | Path | None) -> np.ndarray:
    """An uploaded file as it is displayed: (h, w, 3) uint8.

    Raises:
        ValueError: there is none, or it is no image, damaged, or has more than `MAX_PIXELS`.
    """
    if not path:
        raise ValueError("An image is needed. Upload one, or take one of the examples.")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ValueError("The image is no longer here: uploads are deleted after an hour. Upload it again.") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"An image may have at most {MAX_BYTES:,} bytes, but this has {len(data):,}. Make it smaller.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is stricter
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"An image may have at most {MAX_PIXELS:,} pixels, but this claims far more: {error}"
        ) from error
    except Exception as error:  # a damaged file makes Pillow's readers raise almost anything
        raise ValueError(
            f"An image is a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file, but this one, of {len(data):,} bytes, "
            "cannot be opened as such. Upload another."
        ) from error
    with opened:
        if opened.width * opened.height > MAX_PIXELS:
            raise ValueError(
                f"An image may have at most {MAX_PIXELS:,} pixels, but this has {opened.width:,} x {opened.height:,}. "
                "Make it smaller."
            )
        return rgb_array(opened, "the image")


def expressions_of(text: str | None) -> list[str]:
    """The lines of `text` that are not blank.

    Raises:
        ValueError: there is none, there are more than `MAX_EXPRESSIONS`, or the text has over `MAX_CHARACTERS`.
    """
    text = (text or "").encode("utf-8", "replace").decode()  # no lone surrogates
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"At most {MAX_CHARACTERS:,} characters are read at once, but these are {len(text):,}.")
    expressions = [line.strip() for line in text.splitlines() if line.strip()]
    if not expressions:
        raise ValueError("Say what to look for, one expression per line: the red mug.")
    if len(expressions) > MAX_EXPRESSIONS:
        raise ValueError(
            f"At most {MAX_EXPRESSIONS} expressions are answered at once, a color each, but these are "
            f"{len(expressions)}. Ask again with the others: the image is not encoded again."
        )
    return expressions


def as_json(answers: list[Answer], timing: Timing, threshold: float, model: str) -> dict:
    """Answers as plain values, the masks as COCO's run lengths, {"size": [height, width], "counts": str}."""
    return {
        "model": model,
        "threshold": threshold,
        "height": answers[0].mask.shape[0],
        "width": answers[0].mask.shape[1],
        "milliseconds": {
            "image": round(timing.image, 2),
            "image_was_remembered": timing.remembered,
            "expressions": round(timing.expressions, 2),
        },
        "answers": [
            {
                "expression": answer.expression,
                "found": answer.found,
                "score": answer.score,
                "share": float(answer.mask.mean()),
                "mask": encode_mask(answer.mask),
                "unknown_words": answer.unknown_words,
                "unread_words": answer.unread_words,
            }
            for answer in answers
        ],
    }


def answers_html(model: ImageModel, answers: list[Answer], threshold: float) -> str:
    """A table: color, expression, score and share of the image, or that nothing was found."""
    rows = []
    for color, answer in zip(MASK_COLORS, answers, strict=False):
        notes = []
        if answer.unknown_words:
            notes.append(f"unknown to this model: {shortened(', '.join(answer.unknown_words))}")
        if answer.unread_words:
            notes.append(f"it reads {model.processor.max_words} words; not read: {shortened(answer.unread_words)}")
        if answer.found:
            result = f"<td>{answer.score:.2f}</td><td>{answer.mask.mean():.1%}</td>"
        else:
            highest = model.probability(answer, answer.mask.shape).max()
            notes.append(f"no pixel is above {threshold:.2f}; the highest probability is {highest:.2f}")
            result = '<td colspan="2"><b>nothing found</b></td>'
        said = escape(shortened(answer.expression, 300)) + "".join(f"<small>{escape(note)}</small>" for note in notes)
        rows.append(f'<tr><td><i style="background: {color}"></i></td><td>{said}</td>{result}</tr>')
    head = "<tr><th></th><th>expression</th><th>score</th><th>share</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def timing_text(timing: Timing, num_expressions: int) -> str:
    each = "" if num_expressions == 1 else f", {timing.expressions / num_expressions:.1f} ms each"
    encoding = (
        f"remembered, **not encoded again** (the first time took {timing.image:.1f} ms)"
        if timing.remembered
        else f"encoded in **{timing.image:.1f} ms**"
    )
    return f"Image: {encoding}. Expressions: {num_expressions} in **{timing.expressions:.1f} ms**{each}."


def fitted(pixels: np.ndarray) -> Image.Image:
    """The image, no larger than the page shows it."""
    image = Image.fromarray(pixels)
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    return image


def fitted_mask(mask: np.ndarray, image: Image.Image) -> np.ndarray:
    """A mask (h, w) at the size of the image's `fitted` image."""
    gray = Image.fromarray(mask.astype(np.uint8) * 255)
    return np.asarray(gray.resize(image.size, Image.Resampling.BILINEAR)) > 127


def shortened(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def shown_name(folder: str | Path) -> str:
    """What the page calls a model: a checkpoint of this package by its name, any other by its folder."""
    names = {
        PHOTOS_CHECKPOINT.resolve(): "m3dec-photos",
        SCENES_CHECKPOINT.resolve(): "m3dec-scenes (drawn scenes only)",
    }
    return names.get(Path(folder).resolve(), str(folder))


def about(model: str) -> str:
    """What a visitor must know of the chosen model."""
    if model == shown_name(SCENES_CHECKPOINT):
        return (
            "**This model knows drawn scenes only; on photographs it answers nonsense.** Start the page without "
            "`--model` for one that was trained on photographs."
        )
    if model == shown_name(PHOTOS_CHECKPOINT):
        return f"Answers are by `{model}`, a small model for photographs. It makes mistakes: look before you trust it."
    return f"Answers are by `{model}`."


def milliseconds_since(start: float) -> float:
    return (time.perf_counter() - start) * 1000


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


# ---- The page -------------------------------------------------------------------------------------------------------


def import_gradio():
    """gradio, made unable to fetch what a request names by its URL.

    Raises:
        ImportError: it is not installed, or is one that downloads by another function.
    """
    try:
        import gradio
        from gradio import processing_utils
    except ImportError as error:
        raise ImportError('The page needs gradio, which is not installed: pip install "m3dec[demo]"') from error
    if not hasattr(processing_utils, "async_ssrf_protected_get"):
        raise ImportError(f'Of gradio {gradio.__version__} nothing is known: pip install -U "m3dec[demo]"')

    async def refuse(url: str):
        raise gradio.Error(
            "No URL is fetched here, only uploaded files are read. Upload the image.", print_exception=False
        )

    processing_utils.async_ssrf_protected_get = refuse  # the one function by which it downloads for any component
    return gradio


def page_functions(gradio, models: dict[str, ImageModel]) -> tuple:
    """What the page calls: `segment` for its API, `find` and `detail` for what it shows, `nothing` to empty that."""

    def in_sentences(function):
        """What a ValueError says is shown to the visitor, and to clients of the API."""

        @functools.wraps(function)
        def wrapped(*inputs):
            try:
                return function(*inputs)
            except ValueError as error:
                raise gradio.Error(escape(str(error), quote=False), duration=None, print_exception=False) from error

        return wrapped

    @in_sentences
    def segment(image: str, expressions: str, threshold: float, model: str) -> dict:
        """Answer one expression per line; masks are COCO's run lengths."""
        asked = models[model].ask(read_image(image), expressions_of(expressions), threshold)
        return as_json(*asked, threshold, model)

    @in_sentences
    def find(image: str, expressions: str, threshold: float, opacity: float, model: str, which: int | None):
        """The overlay, the table, the timing, the expressions to choose from, the answers as a file, what was asked."""
        asked, pixels, expressions = expressions, read_image(image), expressions_of(expressions)
        answers, timing = models[model].ask(pixels, expressions, threshold)
        shown = fitted(pixels)
        drawn = overlay_masks(shown, [fitted_mask(answer.mask, shown) for answer in answers], opacity=opacity)
        data = json.dumps(as_json(answers, timing, threshold, model), indent=1).encode()
        choices = [(f"{n + 1}. {shortened(expression, 60)}", n) for n, expression in enumerate(expressions)]
        return (
            drawn,
            answers_html(models[model], answers, threshold),
            timing_text(timing, len(answers)),
            gradio.Radio(choices, value=which if which in range(len(choices)) else 0, visible=len(choices) > 1),
            download(data, f"{stem(image)}_answers.json"),
            asked,
        )

    @in_sentences
    def detail(image: str, expressions: str, threshold: float, model: str, which: int | None):
        """About one expression: heat map, attention, cut-out, and the mask and the cut-out as files."""
        pixels, expressions = read_image(image), expressions_of(expressions)
        number = which if which in range(len(expressions)) else 0
        expression = expressions[number]
        [answer], _ = models[model].ask(pixels, [expression], threshold)
        shown = fitted(pixels)
        scores, words = models[model].attention(pixels, expression)
        alone = cut_out(Image.fromarray(pixels), answer.mask)
        name = f"{stem(image)}_{number + 1}"
        return (
            heat_map(shown, models[model].probability(answer, shown.size[::-1])),
            attention_sheet(models[model].as_seen(shown), scores, words),
            cut_out(shown, fitted_mask(answer.mask, shown)),
            download(png(Image.fromarray(answer.mask.astype(np.uint8) * 255)), f"{name}_mask.png"),
            download(png(alone), f"{name}_cut_out.png"),
        )

    def download(data: bytes, name: str):
        path = gradio.processing_utils.save_bytes_to_cache(data, name, os.environ["GRADIO_TEMP_DIR"])
        return gradio.DownloadButton(value=path, interactive=True)

    def nothing():
        """No answer yet, in all that `find` and `detail` fill."""
        closed = gradio.DownloadButton(value=None, interactive=False)
        return None, "", "", gradio.Radio([], value=None, visible=False), closed, "", None, None, None, closed, closed

    return segment, find, detail, nothing


def build_page(models: dict[str, ImageModel]):
    """The page as `gradio.Blocks`, not yet served. `models` are offered in this order, under these names."""
    gradio = import_gradio()
    segment, find, detail, nothing = page_functions(gradio, models)

    def once_asked(function, num_outputs: int):
        """Nothing happens as long as there is no image or no expression."""

        def wrapped(image, expressions, *others):
            return function(image, expressions, *others) if image and expressions else [gradio.skip()] * num_outputs

        return wrapped

    names = list(models)
    private = {"api_visibility": "private", "concurrency_id": "model"}
    with gradio.Blocks(title="m3dec", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gradio.Markdown("# m3dec\nAn image and an expression go in, the mask of the thing meant comes out.")
        note = gradio.Markdown(about(names[0]))
        with gradio.Row():
            with gradio.Column(scale=4, min_width=320):
                model = gradio.Dropdown(names, value=names[0], label="Model", visible=len(names) > 1)
                image = gradio.Image(
                    label="Image", type="filepath", sources=["upload", "clipboard"], height=320, elem_id="image"
                )
                image.preprocess = lambda file: file and file.path  # as it was uploaded, for `read_image`
                text = gradio.Textbox(
                    label="What to look for", info=f"One expression per line, {MAX_EXPRESSIONS} at most.", lines=3,
                    placeholder="the red mug\nthe cup behind it", elem_id="expressions",
                )  # fmt: skip
                button = gradio.Button("Find", variant="primary", elem_id="find")
                with gradio.Row():
                    threshold = gradio.Slider(0.01, 0.99, 0.5, step=0.01, label="Threshold", min_width=140)
                    opacity = gradio.Slider(0, 1, 0.45, step=0.05, label="Opacity", min_width=140)
                examples = gradio.Examples(example_images(), [image, text], label="Examples")
            with gradio.Column(scale=6, min_width=320):
                result = gradio.Image(buttons=BUTTONS, label="Answer", interactive=False, elem_id="answer")
                table = gradio.HTML(elem_classes="answers", elem_id="answers")
                timing = gradio.Markdown(elem_id="timing")
                which = gradio.Radio(label="Details of", type="value", visible=False, elem_id="which")
                with gradio.Row():
                    mask_file = gradio.DownloadButton("Mask, PNG", interactive=False, elem_id="mask-file")
                    cut_out_file = gradio.DownloadButton("Cut-out, PNG", interactive=False, elem_id="cut-out-file")
                    answers_file = gradio.DownloadButton("All answers, JSON", interactive=False, elem_id="answers-file")
                with gradio.Tab("Probability"):
                    heat = gradio.Image(buttons=BUTTONS, show_label=False, interactive=False, elem_id="heat")
                with gradio.Tab("Attention per word"):
                    gradio.Markdown("Where each word looks: A_mut (Eq. 1) after Eq. 2a's softmax over the pixels.")
                    sheet = gradio.Image(buttons=BUTTONS, show_label=False, interactive=False, elem_id="attention")
                with gradio.Tab("Cut-out"):
                    alone = gradio.Image(
                        buttons=BUTTONS,
                        show_label=False,
                        interactive=False,
                        format="png",
                        elem_classes="cut-out",
                        elem_id="cut-out",
                    )

        asked = gradio.State("")  # what the answers are about, whatever is being typed by now
        chosen = gradio.State(0)  # of `which`, which itself is refused where its choices have changed since
        found = [result, table, timing, which, answers_file, asked]
        details = [heat, sheet, alone, mask_file, cut_out_file]
        to_find = [image, text, threshold, opacity, model, chosen]
        for_details = [image, asked, threshold, model, chosen]
        for event in (button.click, text.submit, examples.load_input_event.then):
            answered = event(find, to_find, found, show_progress_on=result, **private)
            answered.success(None, js=SCROLL).success(detail, for_details, details, **private)
            answered.failure(nothing, None, found + details, **private)
        for event in (threshold.release, opacity.release, model.input):
            again = event(once_asked(find, len(found)), to_find, found, show_progress_on=result, **private)
            again.success(once_asked(detail, len(details)), for_details, details, **private)
        for event in (image.upload, image.clear):  # what stands there is about another
            event(nothing, None, found + details, api_visibility="private", queue=False)
        which.input(lambda number: number, which, chosen, api_visibility="private").success(
            detail, for_details, details, **private
        )
        model.input(about, model, note, api_visibility="private")
        gradio.Button(visible=False).click(
            segment,
            [image, text, threshold, model],
            gradio.JSON(visible=False),
            api_name="segment",
            concurrency_id="model",
        )
    return page


def example_images() -> list[list[str]]:
    """Each photograph of `EXAMPLES` as a file among the uploads, and its expressions."""
    uploads = os.environ["GRADIO_TEMP_DIR"]
    return [[shutil.copy(PHOTOGRAPHS / name, uploads), expressions] for name, expressions in EXAMPLES]


def stem(path: str) -> str:
    return Path(path).stem[:50]


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
