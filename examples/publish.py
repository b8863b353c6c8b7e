"""Take a trained model out: a flat folder with its code, the Hub, or only a look at it.

    m3dec export outputs/your_data/best outputs/flat
    m3dec export outputs/your_data/best outputs/onnx --onnx
    m3dec push model outputs/your_data/best owner/name --private --tag v1
    m3dec push metric owner/referring_iou
    m3dec push dataset outputs/prepared owner/references
    m3dec info outputs/your_data/best --data outputs/prepared

What takes long to import is imported where it is called, so that --help is quick.
"""

import importlib.metadata
import platform
from argparse import ArgumentParser

import torch

import m3dec  # noqa: F401 - registers the model
from m3dec.examples.user_errors import exits_with_message, loading
from m3dec.hub import PHOTOS_CHECKPOINT

PACKAGES = ("m3dec", "torch", "torchvision", "transformers", "timm", "huggingface_hub", "numpy", "pillow")


@exits_with_message
def export_model(arguments: list[str] | None = None):
    from m3dec.hub.outward.export import export

    parser = ArgumentParser(
        description="Write a trained model as a flat folder with its code, loadable where m3dec is not installed.",
        allow_abbrev=False,
    )
    parser.add_argument("model", help="a folder or a name on the Hub")
    parser.add_argument("destination", help="a folder that is not there yet; with --onnx, one of an earlier export too")
    parser.add_argument("--revision", help="branch, tag or commit of a name on the Hub")
    parser.add_argument("--onnx", action="store_true", help="write ONNX graphs for onnxruntime instead (extra: onnx)")
    options = parser.parse_args(arguments)
    if options.onnx and options.revision:
        parser.error("--onnx takes a folder, or the main branch of a name on the Hub")
    if options.onnx:
        export_graphs(options.model, options.destination)
        return
    folder = export(options.model, options.destination, revision=options.revision)
    print(
        f'{folder} is whole. Anywhere: pipeline("referring-image-segmentation", model="{folder}", '
        "trust_remote_code=True)"
    )


def export_graphs(model: str, destination: str) -> None:
    from m3dec.hub.runtimes.export_onnx import export_onnx, print_report

    report = export_onnx(model, None, destination)
    print_report(report)
    if not report["agrees"]:
        raise SystemExit(f"The graphs in {destination} do not agree with the model; see report.json there.")


@exits_with_message
def push(arguments: list[str] | None = None):
    from m3dec.hub.outward.push import push_dataset, push_metric, push_model

    parser = ArgumentParser(
        description="Publish on the Hub. Log in first: hf auth login, or HF_TOKEN.", allow_abbrev=False
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, source in {"model": "a folder", "metric": None, "dataset": "a folder of m3dec prepare"}.items():
        one = kinds.add_parser(kind, allow_abbrev=False)
        if source:
            one.add_argument("source", help=source)
        one.add_argument("repo_id", help="owner/name")
        one.add_argument("--private", action="store_true", default=None, help="where the repository is new")
        one.add_argument("--branch", help="other than the main one")
        one.add_argument("--tag", help="for the commit, such as v1")
        one.add_argument("--message", default="Push by m3dec", help="of the commit")
    options = vars(parser.parse_args(arguments))
    send = {"model": push_model, "metric": push_metric, "dataset": push_dataset}[options.pop("kind")]
    commit = send(**options)
    print(f"{options['repo_id']} is at commit {commit}. Pin it: revision={commit!r}")


@exits_with_message
def info(arguments: list[str] | None = None):
    from transformers import AutoModelForImageSegmentation, AutoProcessor

    parser = ArgumentParser(description="Say what a model is, and which versions run it.", allow_abbrev=False)
    parser.add_argument(
        "model",
        nargs="?",
        default=str(PHOTOS_CHECKPOINT),
        help="a folder or a name on the Hub; default: the checkpoint for photographs that ships with m3dec",
    )
    parser.add_argument("--data", help="a folder of m3dec prepare: measure on it what each of the paper's parts does")
    parser.add_argument("--split", default="val", help="of --data; default: val")
    options = parser.parse_args(arguments)
    name = options.model
    with loading(name):
        processor = AutoProcessor.from_pretrained(name)
        model = AutoModelForImageSegmentation.from_pretrained(name)
    config = model.config
    text = (
        "BERT"
        if config.text_config
        else f"{config.recurrent_type.upper()} over {config.word_vector_size} numbers a word"
    )
    rows = {
        "model": name,
        "parameters": f"{model.num_parameters() / 1e6:.2f} M, {model.dtype}",
        "backbone": config.backbone_config.to_dict().get("backbone") or config.backbone_config.model_type,
        "words": f"{len(processor.tokenizer):,}, at most {config.max_words} an expression; {text}",
        "images": f"{config.image_size} x {config.image_size} pixels"
        + (", letterboxed" if processor.image_processor.do_letterbox else ", stretched"),
        "decoder": f"{config.num_decoder_layers} layers, M3Att {config.mutual_attention}, IMI {config.interaction}, "
        f"masks by {config.mask_decoder}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }
    if options.data:
        rows |= parts_at_work(model, processor, options.data, options.split)
    print("\n".join(f"{name:19}{value}" for name, value in rows.items()))


def parts_at_work(model, processor, folder: str, split: str) -> dict[str, str]:
    """What each of the parts does on some 200 images of prepared data, by the names of `training/diagnostics.py`."""
    from m3dec.examples.training.diagnostics import diagnose, few_batches
    from m3dec.processing.referring_data import load_referring_dataset

    try:
        splits = load_referring_dataset("prepared", root=folder)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from error
    if split not in splits:
        raise SystemExit(f"There is no split {split!r} in {folder}. Its splits are {', '.join(splits)}.")
    found = diagnose(model, few_batches(splits[split], processor, model.config, number=25))
    return {name: f"{value:.4g}" for name, value in found.items()}
