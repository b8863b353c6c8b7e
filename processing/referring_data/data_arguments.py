"""Which data a program reads: the flags that train.py, evaluate_referring.py and prepare_data.py share."""

import logging
from dataclasses import dataclass, field, fields
from pathlib import Path

import datasets

from m3dec.processing.referring_data import load_referring_dataset

logger = logging.getLogger(__name__)

READ_BY = {  # source → the flags that it reads
    "refer": ("data_root", "dataset", "split_by", "image_root", "on_missing"),
    "grefcoco": ("data_root", "dataset", "split_by", "image_root", "on_missing"),
    "hub": ("dataset", "image_root", "on_missing"),
    "coco": ("expressions", "instances", "image_root", "mask_root", "on_missing"),
    "prepared": ("data_root",),
    "generated": ("instances", "image_root"),  # of prepare_data.py; `load` does not know it
}
NEEDED = {"coco": ("expressions", "image_root"), "hub": ("dataset",)}
DEFAULTS = {"refer": ("scenes", "scenes"), "grefcoco": ("grefcoco", "unc")}  # source → dataset, split_by


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
    image_root: str | None = field(default=None, metadata={"help": "The folder of the images, if elsewhere."})
    expressions: str | None = field(default=None, metadata={"help": "Of source coco: the .json, .jsonl or .csv file."})
    instances: str | None = field(default=None, metadata={"help": "Of source coco: COCO's instances file."})
    mask_root: str | None = field(default=None, metadata={"help": "Of source coco: the folder of mask files."})
    on_missing: str = field(default="error", metadata={"help": "Where images are missing: error or skip."})

    def __post_init__(self):
        dataset, split_by = DEFAULTS.get(self.source, ("", ""))
        self.dataset, self.split_by = self.dataset or dataset, self.split_by or split_by

    def load(self) -> datasets.DatasetDict:
        """All splits, one row per reference; a program ends here with a sentence where the data are not right."""
        missing = [f"--{name}" for name in NEEDED.get(self.source, ()) if not getattr(self, name)]
        if missing:
            raise SystemExit(f"--source {self.source} needs {' and '.join(missing)}.")
        self.warn_of_unread_flags()
        parameters = {"data_root": "root"} | ({"dataset": "name"} if self.source == "hub" else {})
        options = {parameters.get(name, name): getattr(self, name) for name in READ_BY.get(self.source, ())}
        try:
            return load_referring_dataset(self.source, **options)
        except (ValueError, OSError) as error:  # no network is an OSError too
            raise SystemExit(str(error)) from error

    def warn_of_unread_flags(self) -> None:
        """Log the flags that were given but that the source does not read."""
        read = (*READ_BY.get(self.source, [each.name for each in fields(DataArguments)]), "source")
        unread = [
            f"--{each.name}"
            for each in fields(DataArguments)
            if each.name not in read and getattr(self, each.name) not in (each.default, "", *DEFAULTS["refer"])
        ]
        if unread:
            logger.warning(f"Source {self.source} does not read {', '.join(unread)}; what they say changes nothing.")

    def describe(self) -> str:
        """The data in a few words, for a heading; no path, for what is written may be published."""
        return {
            "hub": self.dataset,
            "coco": Path(self.expressions or "").name,
            "prepared": Path(self.data_root).resolve().name,
            "generated": Path(self.instances or "").name,
        }.get(self.source, f"{self.dataset} ({self.split_by})")
