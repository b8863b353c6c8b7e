"""The loopback Hub is spoken to by the real clients, each in a child process with a clean home."""

import hashlib
import re
from textwrap import dedent

import pyarrow
import pyarrow.parquet
import pytest
from loopback_hub import OWNER, READER, TOKENS, Blob, loopback_hub  # noqa: F401

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
FILES = {
    "README.md": b"---\npipeline_tag: image-segmentation\nlibrary_name: m3dec\n---\n# A model\n",
    "config.json": b"{}\n",
    "nothing.bin": b"",
    "weights/model.safetensors": bytes(range(256)) * 50,
    "weights/notes.txt": "mütze\n".encode(),
    "picture.png": PNG,
}


def python(code: str, **names) -> str:
    """Code for a child, with these names set to these plain values."""
    return "\n".join([*(f"{name} = {value!r}" for name, value in names.items()), dedent(code)])


def write_files(folder, files=FILES):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return str(folder)


def files_of(hub, name, kind="model", revision="main"):
    files = hub.repository(name, kind).files(revision)
    return {path: content for path, content in files.items() if path != ".gitattributes"}


def test_a_folder_goes_up_once_and_comes_down_byte_for_byte_at_branch_tag_and_commit(hub, tmp_path):
    code = """
    from pathlib import Path
    from huggingface_hub import HfApi, CommitOperationAdd, snapshot_download, hf_hub_download, HfFileSystem
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RevisionNotFoundError

    def refuses(error, function, *arguments, **named):
        try:
            function(*arguments, **named)
        except error as refused:
            return refused
        raise AssertionError(f"{function} was not refused")

    def tree_of(folder):
        folder = Path(folder)
        files = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != ".gitattributes"}

    api, name = HfApi(), "owner/model"
    assert api.whoami()["name"] == "owner"
    url = api.create_repo(name)
    assert url.repo_id == name and url.repo_type == "model", url
    assert api.create_repo(name, exist_ok=True) == url
    assert refuses(HfHubHTTPError, api.create_repo, name).response.status_code == 409
    api.create_repo("owner/space", repo_type="space", space_sdk="gradio")
    assert api.space_info("owner/space").sdk == "gradio"

    first = api.upload_folder(repo_id=name, folder_path=FOLDER, commit_message="First").oid
    assert api.upload_folder(repo_id=name, folder_path=FOLDER, commit_message="Again").oid == first
    assert [commit.title for commit in api.list_repo_commits(name)] == ["First", "initial commit"]
    assert api.list_repo_commits(name)[0].commit_id == first and api.list_repo_commits(name)[0].authors == ["owner"]

    api.create_tag(name, tag="v1", tag_message="One")
    api.create_tag(name, tag="v1", exist_ok=True)
    api.create_branch(name, branch="try/this", revision="v1")
    second = api.upload_file(repo_id=name, path_or_fileobj=b"[]", path_in_repo="config.json", revision="try/this").oid
    refs = api.list_repo_refs(name)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "try/this": second}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}

    info = api.model_info(name, revision="v1", files_metadata=True)
    assert (info.sha, info.pipeline_tag, info.library_name) == (first, "image-segmentation", "m3dec")
    assert api.model_info(name, revision=second).sha == api.model_info(name, revision="try/this").sha == second
    assert {file.rfilename: file.size for file in info.siblings if file.rfilename != ".gitattributes"} == SIZES
    assert {file.path for file in api.list_repo_tree(name)} >= {"weights", "config.json"}
    assert [file.path for file in api.list_repo_tree(name, "weights")] == list(LFS)[1:] + ["weights/notes.txt"]
    files = [file for file in api.list_repo_tree(name, recursive=True, expand=True) if hasattr(file, "lfs")]
    assert {file.path: file.lfs.sha256 for file in files if file.lfs} == LFS
    assert {file.last_commit.title for file in files if file.path != ".gitattributes"} == {"First"}
    paths = ["weights", "config.json"]
    assert [found.path for found in api.get_paths_info(name, [*paths, "no"])] == paths
    refuses(EntryNotFoundError, lambda: list(api.list_repo_tree(name, "no")))

    expected = tree_of(FOLDER)
    for revision in ("main", "v1", first):
        assert tree_of(snapshot_download(name, revision=revision)) == expected
    assert tree_of(snapshot_download(name, revision="try/this")) == {**expected, "config.json": b"[]"}
    assert tree_of(snapshot_download(name, local_dir="here")) == expected
    refuses(EntryNotFoundError, hf_hub_download, name, "no.json")
    refuses(RevisionNotFoundError, hf_hub_download, name, "config.json", revision="v2")
    assert api.file_exists(name, "config.json") and not api.file_exists(name, "no.json")
    with HfFileSystem().open(f"{name}/weights/model.safetensors", block_size=1000) as file:
        file.seek(5000)
        assert file.read(300) == expected["weights/model.safetensors"][5000:5300]

    Path(FOLDER, "config.json").unlink()
    api.upload_folder(repo_id=name, folder_path=FOLDER, delete_patterns="*")
    assert "config.json" not in api.list_repo_files(name) and ".gitattributes" in api.list_repo_files(name)
    api.delete_folder("weights", repo_id=name)
    assert not any(path.startswith("weights") for path in api.list_repo_files(name))
    stale = [CommitOperationAdd("a.txt", b"a")]
    refused = refuses(HfHubHTTPError, api.create_commit, name, stale, commit_message="late", parent_commit=first)
    assert refused.response.status_code == 412
    refuses(RevisionNotFoundError, api.create_commit, name, stale, commit_message="nowhere", revision="no")
    refuses(ValueError, api.upload_file, repo_id=name, path_or_fileobj=b"---\\na: b\\n", path_in_repo="README.md")
    api.delete_branch(name, branch="try/this")
    api.delete_tag(name, tag="v1")
    refuses(RevisionNotFoundError, api.model_info, name, revision="v1")
    api.delete_repo("owner/space", repo_type="space")
    assert not api.repo_exists("owner/space", repo_type="space")
    print(first, second)
    """
    lfs = {path: hashlib.sha256(FILES[path]).hexdigest() for path in ("picture.png", "weights/model.safetensors")}
    sizes = {path: len(content) for path, content in FILES.items()}
    code = python(code, FOLDER=write_files(tmp_path / "folder"), LFS=lfs, SIZES=sizes)
    first, second = hub.run(code, tmp_path / "home", TOKENS[OWNER]).split()
    assert files_of(hub, "owner/model", revision=first) == FILES
    assert files_of(hub, "owner/model", revision=second) == {**FILES, "config.json": b"[]"}
    # The names that a model starts with list no pictures.
    attributes = hub.repository("owner/model").files(first)[".gitattributes"].decode()
    assert attributes.endswith("\npicture.png filter=lfs diff=lfs merge=lfs -text\n")
    uploads = [method for method, path in hub.requests if path.startswith("/lfs-objects/")]
    assert sorted(uploads) == ["POST", "POST", "PUT", "PUT"]
    assert not hub.unserved


def test_private_gated_and_foreign_repositories_are_refused_with_the_clients_own_errors(hub, tmp_path):
    hub.create("owner/private", private=True)
    hub.create("owner/gated", gated="auto")
    hub.create("owner/let-in", gated="manual").access.add(READER)
    for name in ("private", "gated", "let-in"):
        hub.commit(f"owner/{name}", {"config.json": b"{}"})
    code = """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    def status(function, *arguments, **named):
        try:
            function(*arguments, **named)
        except HfHubHTTPError as refused:
            return type(refused).__name__, refused.response.status_code
        return "fine"

    def downloads(token):
        return [status(hf_hub_download, f"owner/{name}", "config.json", token=token)
                for name in ("private", "gated", "let-in", "none")]

    nobody, reader, owner = False, "hf_reader", "hf_owner"
    missing, gated = "RepositoryNotFoundError", "GatedRepoError"
    assert downloads(nobody) == [(missing, 401), (gated, 401), (gated, 401), (missing, 401)], downloads(nobody)
    assert downloads(reader) == [(missing, 404), (gated, 403), "fine", (missing, 404)], downloads(reader)
    assert downloads(owner) == ["fine", "fine", "fine", (missing, 404)], downloads(owner)
    assert status(snapshot_download, "owner/gated", token=reader) == (gated, 403)
    assert status(HfApi(token=reader).auth_check, "owner/gated") == (gated, 403)
    assert status(HfApi(token=reader).model_info, "owner/gated") == "fine"
    assert status(HfApi(token="hf_other").whoami) == ("HfHubHTTPError", 401)
    write = dict(repo_id="owner/gated", path_or_fileobj=b"x", path_in_repo="x")
    assert status(HfApi(token=reader).upload_file, **write) == ("HfHubHTTPError", 403)
    assert status(HfApi(token=reader).create_repo, "owner/mine") == ("HfHubHTTPError", 403)
    assert status(HfApi(token=False).upload_file, **write) == (missing, 401)
    HfApi(token=owner).update_repo_settings("owner/private", private=False)
    assert status(HfApi(token=False).model_info, "owner/private") == "fine"
    HfApi(token=owner).create_repo("owner/hidden", repo_type="dataset", private=True)
    assert status(HfApi(token=reader).dataset_info, "owner/hidden") == (missing, 404)
    """
    hub.run(python(code), tmp_path / "home")
    assert hub.repository("owner/hidden", "dataset").private and not hub.unserved


def test_a_broken_upload_leaves_the_old_revision(hub, tmp_path):
    hub.create("owner/model")
    old = hub.commit("owner/model", {"config.json": b"old"})
    push = """
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download
    from huggingface_hub.utils import _http

    print(open(hf_hub_download("owner/model", "config.json", force_download=True)).read())
    _http.time.sleep = lambda seconds: None  # between the tries
    adds = [CommitOperationAdd("config.json", b"new"), CommitOperationAdd("model.safetensors", WEIGHTS)]
    try:
        HfApi().create_commit("owner/model", adds, commit_message="Pushed")
    except Exception as error:
        print(type(error).__name__)
    """
    home = tmp_path / "home"
    for fault, error in (
        (lambda: hub.fail_next("upload", times=6, status=None), "RuntimeError"),
        (lambda: hub.break_after(5), "RuntimeError"),  # HEAD, GET, preupload, batch and upload, but not verify
        (lambda: hub.fail_next("commit"), "HfHubHTTPError"),
        (lambda: hub.fail_next("commit", status=None), "RemoteProtocolError"),
    ):
        fault()
        assert hub.run(python(push, WEIGHTS=b"first"), home, TOKENS[OWNER]).split() == ["old", error]
        assert hub.repository("owner/model").at().id == old
        hub.mend()
    hub.fail_next("upload", times=2, status=503)  # the client tries again
    assert hub.run(python(push, WEIGHTS=b"second"), home, TOKENS[OWNER]) == "old\n"
    assert files_of(hub, "owner/model") == {"config.json": b"new", "model.safetensors": b"second"}
    assert [commit.message for commit in hub.repository("owner/model").history()][:2] == ["Pushed", "Add files"]


@pytest.mark.slow
def test_transformers_pushes_and_loads_by_revision_with_and_without_remote_code(hub, tmp_path):
    code = """
    import torch
    from transformers import AutoConfig, AutoModel, BertConfig, BertModel, logging
    logging.set_verbosity_error()

    shape = dict(hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=5, vocab_size=7)
    model = BertModel(BertConfig(**shape))
    first = model.push_to_hub("owner/bert", private=True, commit_message="First").oid
    assert model.push_to_hub("owner/bert").oid == first
    model.embeddings.word_embeddings.weight.data += 1
    second = model.push_to_hub("owner/bert", commit_message="Second").oid
    embeddings = {revision: AutoModel.from_pretrained("owner/bert", revision=revision).get_input_embeddings().weight
                  for revision in ("main", first, second)}
    assert torch.equal(embeddings["main"], model.embeddings.word_embeddings.weight)
    assert torch.equal(embeddings[second], embeddings["main"])
    assert torch.allclose(embeddings[first] + 1, embeddings["main"])

    from huggingface_hub import HfApi
    HfApi().create_repo("owner/code")
    versions = []
    for size in (3, 4):
        lines = ["from transformers import PreTrainedConfig", "class OurConfig(PreTrainedConfig):",
                 "    model_type = 'ours'", f"    version = {size}"]
        source = "\\n".join(lines)
        HfApi().upload_file(repo_id="owner/code", path_or_fileobj=source.encode(), path_in_repo="ours.py")
        config = b'{"model_type": "ours", "auto_map": {"AutoConfig": "ours.OurConfig"}}'
        HfApi().upload_file(repo_id="owner/code", path_or_fileobj=config, path_in_repo="config.json")
        versions.append(HfApi().model_info("owner/code").sha)
    first, second = versions
    load = lambda **named: AutoConfig.from_pretrained("owner/code", trust_remote_code=True, **named).version
    assert (load(), load(revision=first), load(code_revision=first)) == (4, 3, 3)
    assert load(revision=first, code_revision=second) == 4
    """
    hub.run(python(code), tmp_path / "home", TOKENS[OWNER])
    assert len(hub.repository("owner/bert").commits) == 3 and hub.repository("owner/bert").private
    assert not hub.unserved


@pytest.mark.slow
def test_parquet_shards_stream_and_a_module_of_a_space_loads(hub, tmp_path):
    hub.create("owner/scenes", "dataset")
    for shard in range(3):
        pyarrow.parquet.write_table(pyarrow.table({"row": [3 * shard, 3 * shard + 1]}), tmp_path / "shard.parquet")
        path = f"data/train-{shard:05}-of-00003.parquet"
        hub.commit("owner/scenes", {path: (tmp_path / "shard.parquet").read_bytes()}, "dataset")
    hub.create("owner/score", "space")
    module = """
    import datasets
    import evaluate


    class Score(evaluate.Metric):
        def _info(self):
            number = datasets.Value("int64")
            features = datasets.Features({"predictions": number, "references": number})
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions, references):
            return {"score": sum(predictions) - sum(references)}
    """
    hub.commit("owner/score", {"score.py": dedent(module).encode(), "README.md": b"# Score\n"}, "space")
    code = """
    import datasets
    import evaluate

    rows = [0, 1, 3, 4, 6, 7]
    stream = datasets.load_dataset("owner/scenes", split="train", streaming=True)
    assert stream.num_shards == 3 and [example["row"] for example in stream] == rows
    assert datasets.load_dataset("owner/scenes", split="train")["row"][:] == rows

    datasets.Dataset.from_dict({"a": [1, 2, 3]}).push_to_hub("owner/pushed", private=True)
    assert datasets.load_dataset("owner/pushed", split="train")["a"][:] == [1, 2, 3]

    metric = evaluate.load("owner/score")
    assert metric.compute(predictions=[4, 5], references=[1, 2]) == {"score": 6}
    """
    hub.run(python(code), tmp_path / "home", TOKENS[OWNER])
    assert ("GET", "/spaces/owner/score/resolve/main/score.py") in hub.requests
    assert hub.repository("owner/pushed", "dataset").private and not hub.unserved


def test_the_names_of_a_blob_are_gits_and_lfs_own():
    assert Blob(b"hello\n").git_id == "ce013625030ba8dba906f756967f9e9ca394464a"  # git hash-object
    assert Blob(b"hello\n", lfs=True).sha256 == "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"


def test_children_reach_only_this_machine_and_unknown_requests_are_told(hub, tmp_path):
    code = """
    import os
    import urllib.error
    import urllib.request

    assert "HF_HUB_OFFLINE" not in os.environ
    try:
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/api/trending?limit=1")
    except urllib.error.HTTPError as refused:
        assert refused.code == 501
    """
    hub.run(python(code), tmp_path / "home")
    assert hub.unserved == hub.requests == [("GET", "/api/trending")]
    stray = "import contextlib, socket\nwith contextlib.suppress(OSError): socket.getaddrinfo('example.invalid', 80)"
    with pytest.raises(AssertionError, match=re.escape("tried to reach {'example.invalid'}")):
        hub.run(stray, tmp_path / "home")
    with pytest.raises(ValueError, match="'uplaod'"):
        hub.fail_next("uplaod")
