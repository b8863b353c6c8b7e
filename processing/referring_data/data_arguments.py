"""Which data a program reads: the flags that train.py, evaluate_referring.py and prepare_data.py share."""

from dataclasses import dataclass, field
from pathlib import Path

import datasets

from m3dec.processing.referring_data import load_referring_dataset


@dataclass
class DataArguments:
    source: str = field(
        default="refer", metadata={"help": "The kind of files: refer, grefcoco, hub, coco (your own), prepared."}
    )
    data_root: str = field(default="outputs/data", metadata={"help": "The folder of official or prepared files."})
    dataset: str | None = field(
        default=None,
        metadata={
            "help": "The data set's folder below data_root, scenes or grefcoco by default; of source hub its name or "
            "folder."
        },
    )
    split_by: str | None = field(
        default=None, metadata={"help": "Who made the splits: unc, umd, google, scenes. By default scenes or unc."}
    )
    image_root: str | None = field(default=None, metadata={"help": "The folder of the pictures, if elsewhere."})
    expressions: str | None = field(default=None, metadata={"help": "Of source coco: the .json, .jsonl or .csv file."})
    instances: str | None = field(default=None, metadata={"help": "Of source coco: COCO's instances file."})
    mask_root: str | None = field(default=None, metadata={"help": "Of source coco: the folder of mask files."})
    on_missing: str = field(default="error", metadata={"help": "Where pictures are missing: error or skip."})

    def __post_init__(self):
        dataset, split_by = {"refer": ("scenes", "scenes"), "grefcoco": ("grefcoco", "unc")}.get(self.source, ("", ""))
        self.dataset, self.split_by = self.dataset or dataset, self.split_by or split_by

    def load(self) -> datasets.DatasetDict:
        """All splits, one row per reference; a program ends here with a sentence where the data are not right."""
        official = {
            "root": self.data_root,
            "dataset": self.dataset,
            "split_by": self.split_by,
            "image_root": self.image_root,
            "on_missing": self.on_missing,
        }
        options = {
            "refer": official,
            "grefcoco": official,
            "hub": {"name": self.dataset, "image_root": self.image_root, "on_missing": self.on_missing},
            "coco": {
                "expressions": self.expressions,
                "instances": self.instances,
                "image_root": self.image_root,
                "mask_root": self.mask_root,
                "on_missing": self.on_missing,
            },
            "prepared": {"root": self.data_root},
        }
        needed = {"coco": ("expressions", "image_root"), "hub": ("dataset",)}.get(self.source, ())
        missing = [f"--{name}" for name in needed if not getattr(self, name)]
        if missing:
            raise SystemExit(f"--source {self.source} needs {' and '.join(missing)}.")
        try:
            return load_referring_dataset(self.source, **options.get(self.source, {}))
        except (ValueError, OSError) as error:  # no network is an OSError too
            raise SystemExit(str(error)) from error

    def describe(self) -> str:
        """The data in a few words, for a heading; no path, for what is written may be published."""
        return {
            "hub": self.dataset,
            "coco": Path(self.expressions or "").name,
            "prepared": Path(self.data_root).resolve().name,
            "generated": Path(self.instances or "").name,
        }.get(self.source, f"{self.dataset} ({self.split_by})")
