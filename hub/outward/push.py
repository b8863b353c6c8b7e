"""Publish on the Hub: a trained model with its card and code, the metric as a Space, a prepared data set.

    push_model("outputs/scenes/best", "owner/m3dec-scenes", private=True, tag="v1")
    push_metric("owner/referring_iou")
    push_dataset("outputs/prepared", "owner/my-references")

Each is one commit: an upload that is interrupted leaves the old state, and without a change there is no commit. Old
weights of a model, and old shards of the splits that are pushed, are deleted. All other files in the repository stay.
"""

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from m3dec.processing.referring_data import ReferringDataError
from m3dec.processing.referring_data.readers.prepared_shards import MANIFEST, prepared_files

from .export import export

logger = logging.getLogger(__name__)

METRIC_FOLDER = Path(__file__).resolve().parents[2] / "processing" / "referring_iou"
OWN_PATH = re.compile(r"(?:file:/+|(?<![\w:/.<~])(?:~?/|[A-Za-z]:[/\\]|\\\\))[\w.][^\s'\",)\]<>]*")

# What a push replaces as a whole: weights and shards may be cut otherwise the next time.
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json")
SHARD = re.compile(r"(.+)-\d+-of-\d+\.parquet")
PREPARED = ["data/*.parquet", "prepared.json", "summary.json", "samples.png", "vocabulary.txt"]  # by m3dec prepare

# A lost connection raises an error of huggingface_hub's HTTP client, a broken upload a RuntimeError.
REFUSALS = (HfHubHTTPError.__bases__[0], OSError, RuntimeError)


class PushError(Exception):
    """The Hub did not take what was pushed; the text says what to do."""


def push_model(source: str | Path, repo_id: str, *, tag: str | None = None, token: str | None = None, **kwargs) -> str:
    """Push a trained model's folder as `export` writes it: loadable with and without this package.

    Args:
        source: a folder that `save_pretrained` or a training wrote, or a name on the Hub.
        repo_id: owner/name; without an owner, the token's. The repository is made where it is not there.
        tag: given to the commit.
        token: where it is not the one that `hf auth login` stored or HF_TOKEN holds.
        private (bool | None): of a new repository. True is refused where the repository is there and public.
        branch (str | None): to push to; made from the main one where it is not there.
        message (str): of the commit.

    Returns:
        The commit's id, 40 hexadecimal digits, to pin as `revision` and `code_revision`.

    Raises:
        PushError: the Hub refuses: no login, no right to write, a tag or a public repository in the way.
        FileNotFoundError, ValueError: `source` is no trained model; see `export`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = export(source, Path(temporary) / "model", token=token)
        card = folder / "README.md"
        paths = own_paths(card.read_text(encoding="utf-8")) if card.is_file() else []
        if paths:
            logger.warning("The model card names paths of this machine, which all will read: %s", ", ".join(paths))
        return push_folder(folder, repo_id, "model", tag=tag, token=token, stale=WEIGHTS, **kwargs)


def push_metric(repo_id: str, *, tag: str | None = None, token: str | None = None, **kwargs) -> str:
    """Push the metric as a Space, for `evaluate.load(repo_id)`; the Space must be called referring_iou, as the module.

    Args, Returns, Raises: as `push_model`, without `source`.
    """
    if repo_id.rpartition("/")[2] != "referring_iou":
        raise ValueError(
            f"evaluate looks for a module of its Space's name, so it is owner/referring_iou, but got {repo_id!r}."
        )
    return push_folder(METRIC_FOLDER, repo_id, "space", tag=tag, token=token, **kwargs)


def push_dataset(
    source: str | Path, repo_id: str, *, tag: str | None = None, token: str | None = None, **kwargs
) -> str:
    """Push what `m3dec prepare` wrote, and a README.md beside it. Have the right to publish it.

    It is read by `load_dataset(repo_id, streaming=True)`, or downloaded and read as prepared data.

    Args, Returns, Raises: as `push_model`; FileNotFoundError where `source` holds no data/*.parquet, and
        ReferringDataError, a ValueError, where they are not all that its prepared.json names, or where the repository
        holds splits that its prepared.json does not name: the new prepared.json would hide them.
    """
    shards = [SHARD.fullmatch(path.name) for path in Path(source).glob("data/*.parquet")]
    splits = "|".join(sorted({re.escape(shard[1]) for shard in shards if shard}))
    if not splits:
        raise FileNotFoundError(f"A prepared data set holds data/*.parquet, but {source} does not. Run m3dec prepare.")
    if (Path(source) / MANIFEST).is_file():
        repo_id = open_repository(repo_id, "dataset", private=kwargs.get("private"), token=token)
        hidden = splits_there(repo_id, kwargs.get("branch"), token) - prepared_files(source).keys()
        if hidden:
            raise ReferringDataError(
                f"{repo_id} holds {', '.join(sorted(hidden))} as well, which {source} does not, and nobody would find "
                "it any more. Prepare all splits together, or push to another repository."
            )
    stale = re.compile(rf"data/({splits})-\d+-of-\d+\.parquet")
    files = [*PREPARED, "README.md"]
    return push_folder(Path(source), repo_id, "dataset", tag=tag, token=token, stale=stale, files=files, **kwargs)


def splits_there(repo_id: str, branch: str | None, token: str | None) -> set[str]:
    """The splits that a repository's prepared.json names; none where it has no such file."""
    with hub_refusals(repo_id):
        try:
            path = hf_hub_download(repo_id, MANIFEST, repo_type="dataset", revision=branch, token=token)
        except (EntryNotFoundError, RevisionNotFoundError):
            return set()
    return set(json.loads(Path(path).read_text(encoding="utf-8"))["rows"])


def push_folder(
    folder: Path,
    repo_id: str,
    kind: str,
    *,
    private: bool | None = None,
    branch: str | None = None,
    tag: str | None = None,
    message: str = "Push by m3dec",
    token: str | None = None,
    stale: re.Pattern | None = None,
    files: list[str] | None = None,
) -> str:
    """Push a folder's `files`, patterns or all, as one commit to a repository of a `kind`, and give the commit's id.

    Files there whose path matches `stale` are deleted where they are not pushed again: shards of an earlier cut.
    """
    api = HfApi(token=token)
    with hub_refusals(repo_id):
        repo_id = open_repository(repo_id, kind, private=private, token=token)
        if branch is not None:
            api.create_branch(repo_id, branch=branch, repo_type=kind, exist_ok=True)
        there = api.list_repo_files(repo_id, repo_type=kind, revision=branch) if stale else []
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type=kind,
            folder_path=folder,
            revision=branch,
            commit_message=message,
            allow_patterns=files,
            delete_patterns=[name for name in there if stale.fullmatch(name)],
            ignore_patterns=["__pycache__/*", "*.tmp"],
        ).oid
        if tag is not None:
            tags = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=kind).tags}
            if tags.get(tag, commit) != commit:
                raise PushError(
                    f"The tag {tag} of {repo_id} stands for another commit, {tags[tag][:8]}. What was pushed is "
                    f"{commit[:8]}; choose another tag for it."
                )
            api.create_tag(repo_id, tag=tag, revision=commit, repo_type=kind, exist_ok=True)
    return commit


def open_repository(repo_id: str, kind: str = "model", *, private: bool | None = None, token: str | None = None) -> str:
    """Make a repository where it is not there, and give its whole name.

    Raises:
        PushError: as `push_model`.
    """
    api = HfApi(token=token)
    space_sdk = "static" if kind == "space" else None
    with hub_refusals(repo_id):
        name = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=space_sdk).repo_id
        if private and not api.repo_info(name, repo_type=kind).private:
            raise PushError(
                f"{name} is there and public, so nothing was pushed to it. Make it private in its settings, or name "
                "another."
            )
    return name


@contextmanager
def hub_refusals(repo_id: str) -> Iterator[None]:
    """Turn what the Hub and the connection to it raise into a `PushError` that says what to do."""
    try:
        yield
    except REFUSALS as error:
        response = error.response if isinstance(error, HfHubHTTPError) else None
        status = None if response is None else response.status_code
        if isinstance(error, GatedRepoError):
            advice = f"{repo_id} is gated: ask for access on its page."
        elif isinstance(error, LocalTokenNotFoundError) or status == 401:
            advice = "Log in with a token that may write: hf auth login, or set HF_TOKEN."
        elif isinstance(error, RepositoryNotFoundError) or status == 403:
            advice = f"The token may not write to {repo_id}: name a repository of your own, or use a token that may."
        elif status is None:
            advice = f"Pushing to {repo_id} did not end, and no part of a commit is kept; push again."
        else:
            advice = f"The Hub refuses this for {repo_id}."
        raise PushError(f"{advice} ({str(error).strip()})") from error


def own_paths(card: str) -> list[str]:
    """Absolute paths that a model card names."""
    return list(dict.fromkeys(OWN_PATH.findall(card)))
