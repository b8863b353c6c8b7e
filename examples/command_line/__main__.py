"""The command `m3dec`: the programs of examples/ under one name.

m3dec predict photo.jpg "the red mug"
m3dec train examples/recipes/your_data.yaml --help
"""

import atexit
import gc
import sys
from importlib import import_module
from types import ModuleType

COMMANDS = {  # name: (module, its function of a list of arguments, what it does)
    "predict": ("m3dec.examples.predict", "main", "find what expressions refer to in images"),
    "demo": ("m3dec.examples.demo", "main", "the same on a page in the browser"),
    "prepare": ("m3dec.examples.prepare_data", "main", "check referring data, and write them as Parquet shards"),
    "train": ("m3dec.examples.train", "main", "train a model by a recipe"),
    "evaluate": ("m3dec.examples.evaluate_referring", "main", "measure a model, or compare two"),
    "infer": ("m3dec.examples.infer", "main", "answer whole sets of images"),
    "export": ("m3dec.examples.publish", "export_model", "write a model as a flat folder with its code, or as ONNX"),
    "push": ("m3dec.examples.publish", "push", "publish a model, the metric or prepared data on the Hub"),
    "info": ("m3dec.examples.publish", "info", "say what a model is, and which versions run it"),
}


def main(arguments: list[str] | None = None):
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: m3dec COMMAND …, and m3dec COMMAND --help for more\n")
        print("\n".join(f"  {command:10}{what}" for command, (_, _, what) in COMMANDS.items()))
        return
    if name not in COMMANDS:
        sys.stderr.write(f"m3dec: there is no command {name!r}. Choose one of {', '.join(COMMANDS)}.\n")
        raise SystemExit(2)
    module, function, _ = COMMANDS[name]
    sys.argv[0] = f"m3dec {name}"  # argparse's usage line
    imported = import_for_good(module) if arguments is None else import_module(module)
    getattr(imported, function)(rest)


def import_for_good(name: str) -> ModuleType:
    """A module for the rest of this process. Python would search all that it imports for garbage, many times and at the
    end once more, and find none: that took two of the six seconds of `m3dec predict`."""
    gc.disable()
    module = import_module(name)
    gc.freeze()
    gc.enable()
    atexit.register(gc.freeze)
    return module


if __name__ == "__main__":
    main()
