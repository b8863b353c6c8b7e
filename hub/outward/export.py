"""A trained model as one flat folder with its code, which transformers loads where this package is not installed.

    export("outputs/scenes/best", "outputs/flat")
    # elsewhere: pipeline("referring-image-segmentation", model="outputs/flat", trust_remote_code=True)

transformers copies such code file by file, and follows only imports of the form `from .name import`. So all files lie
in one folder and import each other like that.
"""

import ast
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError, safe_open

AUTO_CLASSES = {
    "AutoConfig": "configuration_m3dec.M3DecConfig",
    "AutoModel": "modeling_m3dec.M3DecModel",
    "AutoModelForImageSegmentation": "modeling_m3dec.M3DecForImageSegmentation",
}
AUTO_IMAGE_PROCESSOR = {
    "torchvision": "image_processing_m3dec.M3DecImageProcessor",
    "pil": "image_processing_pil_m3dec.M3DecImageProcessorPil",
}
AUTO_PROCESSOR = "processing_m3dec.M3DecProcessor"
PIPELINES = {
    "referring-image-segmentation": {
        "impl": "pipeline_m3dec.ReferringImageSegmentationPipeline",
        "pt": ["AutoModelForImageSegmentation"],
        "type": "multimodal",
    }
}
# The modules that these names are in; what they import comes along.
ENTRY_MODULES = (
    "m3dec.configuration.configuration_m3dec",
    "m3dec.modeling_m3dec",
    "m3dec.processing.image_processing_m3dec",
    "m3dec.processing.image_processing_pil_m3dec",
    "m3dec.processing.processing_m3dec",
    "m3dec.processing.pipeline_m3dec",
)
SAVED = ("config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json")
ONE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
IMPORT = re.compile(r"^from (m3dec\.(?:\w+\.)*\w+|\.\w+) import", re.MULTILINE)


def export(source: str | Path, destination: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """Write the flat folder of a trained model. It appears only when it is whole.

    Args:
        source: a folder that `save_pretrained` or a training wrote, or a name on the Hub.
        destination: the new folder; an empty one may be there.
        revision: branch, tag or commit of a name on the Hub.
        token: for the Hub, where it is not the one that `hf auth login` stored.

    Returns:
        The destination.

    Raises:
        FileExistsError: `destination` holds something.
        FileNotFoundError: `source` is no folder and no name on the Hub, or lacks a file, such as model.safetensors:
            weights in files that can run code are not exported.
        ValueError: it holds another model, damaged weights, or a link that leads out of it.
    """
    destination = Path(destination).absolute()
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise FileExistsError(f"An export needs a new folder, but {destination} is there. Delete it, or name another.")
    folder = model_folder(source, revision, token)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as temporary:
        flat = Path(temporary) / destination.name
        flat.mkdir()
        for name in (*SAVED, *weight_files(folder), *card_and_images(folder)):
            shutil.copyfile(real_file(folder, name), flat / name)
        with edited_json(flat / "config.json") as config:
            config |= {"auto_map": AUTO_CLASSES, "custom_pipelines": PIPELINES}
            for part in ("backbone_config", "text_config"):
                if config.get(part):
                    config[part]["_name_or_path"] = ""  # it may be a path of this machine
        with edited_json(flat / "processor_config.json") as processor:
            processor["auto_map"] = {"AutoProcessor": AUTO_PROCESSOR, "AutoImageProcessor": AUTO_IMAGE_PROCESSOR}
            processor["image_processor"]["auto_map"] = {"AutoImageProcessor": AUTO_IMAGE_PROCESSOR}
        with edited_json(flat / "tokenizer_config.json") as tokenizer:
            tokenizer.pop("auto_map", None)  # it would name code of others
        for name, text in flat_code().items():
            (flat / name).write_text(text, encoding="utf-8")
        shutil.copyfile(Path(__file__).parents[1] / "runtimes" / "handler.py", flat / "handler.py")
        (flat / "requirements.txt").write_text("\n".join(endpoint_requirements()) + "\n", encoding="utf-8")
        if destination.is_dir():
            destination.rmdir()  # an empty one
        flat.replace(destination)
    return destination


def model_folder(source: str | Path, revision: str | None = None, token: str | None = None) -> Path:
    """The folder of a trained model, fetched from the Hub where there is no such folder; it holds all of `SAVED`."""
    folder = Path(source)
    if not folder.is_dir():
        wanted = [*SAVED, ONE_FILE, INDEX, "model-*-of-*.safetensors", "README.md", "*.png"]
        try:
            folder = Path(snapshot_download(str(source), revision=revision, token=token, allow_patterns=wanted))
        except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError) as error:
            raise FileNotFoundError(
                f"A model is a folder or a name on the Hub, but {source!r} is no folder here, and the Hub says: "
                f"{str(error).strip()}"
            ) from error
    missing = [name for name in SAVED if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"A trained model's folder holds {', '.join(SAVED)}, but {source} lacks {' and '.join(missing)}. Save the "
            "model and the processor into one folder."
        )
    kind = read_json(folder / "config.json").get("model_type")
    if kind != "m3dec":
        raise ValueError(f"Only m3dec models can be exported, but {source} holds a model of type {kind!r}.")
    return folder


def weight_files(folder: Path) -> list[str]:
    """The names of the weights' files: model.safetensors, or an index and its shards. All are there and whole."""
    names = [ONE_FILE]
    if (folder / INDEX).is_file() and not (folder / ONE_FILE).is_file():
        shards = set(read_json(folder / INDEX)["weight_map"].values())
        names = [INDEX, *sorted(filter(SHARD.fullmatch, shards))]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing or names == [INDEX]:
        raise FileNotFoundError(
            f"Weights are exported from {ONE_FILE}, or from model-00001-of-… and their index, but {folder} lacks "
            f"{', '.join(missing) or 'the shards'}. Load the model and save it again by save_pretrained."
        )
    for name in names:
        if name == INDEX:
            continue
        try:
            with safe_open(folder / name, "pt"):
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{folder / name} is no whole file of weights ({error}). Fetch it again; a clone needs git-lfs."
            ) from error
    return names


def card_and_images(folder: Path) -> list[str]:
    """The names of the model card and of the images in the folder that it shows."""
    if not (folder / "README.md").is_file():
        return []
    shown = re.findall(r"[\w.-]+\.png", real_file(folder, "README.md").read_text(encoding="utf-8"))
    return ["README.md", *(name for name in sorted(set(shown)) if (folder / name).is_file())]


def real_file(folder: Path, name: str) -> Path:
    """The path of a file of the folder, with links resolved.

    A folder that a stranger made may hold links to private files. So a link may only lead to a file within the folder,
    or to one of the same repository in the Hub's cache.
    """
    file, home = (folder / name).resolve(), folder.resolve()
    if not any(file.is_relative_to(place) for place in (home, home.parent.parent / "blobs")):
        raise ValueError(f"{folder / name} is a link to {file}, out of its folder. Put a copy there to export it.")
    return file


def endpoint_requirements() -> list[str]:
    """What handler.py needs where an endpoint starts with other versions, or without timm."""
    return [line for line in requires("m3dec") if re.split(r"[<>=!~; ]", line)[0] in ("timm", "transformers")]


def flat_code() -> dict[str, str]:
    """File name → text of each module that a model needs, with imports of neighbours only."""
    files, waiting = {}, [(name, find_spec(name).origin) for name in ENTRY_MODULES]
    while waiting:
        module, path = waiting.pop()
        name = f"{module.rpartition('.')[2]}.py"
        if name in files:
            continue
        text = Path(path).read_text(encoding="utf-8")
        for imported in IMPORT.findall(text):
            whole = module.rpartition(".")[0] + imported if imported.startswith(".") else imported
            waiting.append((whole, find_spec(whole).origin))
        files[name] = IMPORT.sub(lambda found: f"from .{found[1].rpartition('.')[2]} import", text)
        left = [line for line in imports(files[name]) if line.split(".")[0] == "m3dec"]
        if left:
            raise ValueError(f"{path} imports {left[0]} in a way that an export does not know: one line, at its start.")
    return files


def imports(code: str) -> list[str]:
    """The modules that Python code imports; those beside it with a dot before."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append("." * node.level + (node.module or ""))
    return found


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}. Fetch it again.") from error


@contextmanager
def edited_json(path: Path) -> Iterator[dict]:
    """The object in a JSON file, to be changed; then it is written back."""
    values = read_json(path)
    yield values
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
