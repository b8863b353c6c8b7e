"""A Hub on 127.0.0.1 for the tests: the standard library only, in memory, spoken to by the real clients.

It is a faithful double of a SUBSET of the Hugging Face Hub. Repositories (models, datasets, Spaces) are chains of
commits with branches and tags, and it serves what huggingface_hub, transformers, datasets and evaluate ask for:

- GET /api/whoami-v2; POST /api/validate-yaml (that a card's metadata block is there and ends, not what it says)
- POST /api/repos/create, DELETE /api/repos/delete, PUT /api/{kind}/{repo}/settings (visibility and gate)
- GET /api/{kind}/{repo}[/revision/{commit}] (of the card, only pipeline_tag and library_name), …/auth-check, …/refs,
  …/commits/{commit}, …/tree/{commit}[/{path}] (all in one page); POST …/paths-info/{commit}
- POST, DELETE …/branch/{branch}; POST …/tag/{commit}, DELETE …/tag/{tag}
- POST …/preupload/{commit}, …/commit/{branch}, /{repo}.git/info/lfs/objects/batch; PUT and verify an LFS object
- HEAD, GET /{repo}/resolve/{commit}/{path}, whole or a range

As on the Hub, a new repository holds one commit with a `.gitattributes`, which says what is LFS; other binary files
are LFS too, and get a line there. Without the right token a private repository looks like one that is not there, and a
gated one can be seen but its files cannot be fetched.

Not served: Xet, pull requests and discussions, multi-part uploads, `.gitignore`, redirects to a CDN, pages of long
listings, short commit ids, moving, searching, the dataset viewer, organisations. A request for anything else is
answered 501 and stands in `hub.unserved`.
"""

import base64
import fnmatch
import hashlib
import itertools
import json
import os
import re
import site
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

import pytest

OWNER, READER = "owner", "reader"  # the owner writes to owner/…; the reader writes nowhere
TOKENS = {OWNER: "hf_owner", READER: "hf_reader"}
LFS_SIZE = 10 * 1024 * 1024  # bytes from which a text is LFS too
LFS_NAMES = """*.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack *.npy *.npz
*.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors saved_model/**/* *.tar.* *.tar *.tflite *.tgz
*.wasm *.xz *.zip *.zst *tfevents*"""
MEDIA_NAMES = " *.bmp *.gif *.png *.tiff *.jpg *.jpeg *.webp *.flac *.mp3 *.ogg *.wav *.mp4 *.webm"  # of datasets
LFS_ATTRIBUTES = " filter=lfs diff=lfs merge=lfs -text\n"

# A child process runs this before anything else: it speaks to this machine only, and whom else it tried to reach is
# written down. `datasets` puts "datasets-server." before the endpoint's host, which here is no name at all.
GUARD = """import sys

def only_this_machine(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host not in (None, "", "127.0.0.1", "localhost", "::1"):
        if host != "datasets-server.127.0.0.1":
            with open({log!r}, "a") as file:
                file.write(host + "\\n")
        raise OSError(f"{{host}} is not this machine")

sys.addaudithook(only_this_machine)
"""


@dataclass(frozen=True)
class Blob:
    """The content of one file, under the names that git and LFS give it."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def git_id(self) -> str:
        kept = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def pointer(self) -> bytes:
        """What git itself keeps of an LFS file."""
        text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return text.encode()

    @property
    def etag(self) -> str:
        """Clients hash a local file the same way, and leave out of a commit what has not changed."""
        return self.sha256 if self.lfs else self.git_id

    def lfs_entry(self, name: str) -> dict:
        """What a listing adds for an LFS file; its hash is called "oid" in one listing and "sha256" in another."""
        sizes = {"size": len(self.content), "pointerSize": len(self.pointer)}
        return {"lfs": {name: self.sha256, **sizes}} if self.lfs else {}


@dataclass(frozen=True)
class Commit:
    """One state of a repository. Its id is a hash over what came before, what it holds and what it says."""

    parent: str | None
    files: dict[str, Blob]
    message: str
    author: str
    date: str = field(default_factory=lambda: f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S.%f}Z")

    @cached_property
    def id(self) -> str:
        return hashlib.sha1(json.dumps([self.parent, self.id_of(""), self.message]).encode()).hexdigest()

    def id_of(self, path: str) -> str | None:
        """Which content a file has here, or a folder; None if there is neither."""
        if path in self.files:
            return self.files[path].git_id
        below = sorted((name, blob.git_id) for name, blob in self.files.items() if name.startswith(path and path + "/"))
        return hashlib.sha1(json.dumps(below).encode()).hexdigest() if below else None

    def lists_as_lfs(self, path: str) -> bool:
        """What `.gitattributes` says of `path`."""
        lines = self.files[".gitattributes"].content.decode().splitlines() if ".gitattributes" in self.files else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        return any(fnmatch.fnmatchcase(path if "/" in name else path.split("/")[-1], name) for name in patterns)

    def takes_as_lfs(self, path: str, size: int, start: bytes) -> bool:
        """Whether a new file is to go up as LFS. A client tells the first bytes of it."""
        return size > 0 and (b"\0" in start[:512] or size >= LFS_SIZE or self.lists_as_lfs(path))


@dataclass
class Repository:
    """Commits, and the branches and tags that point at them."""

    kind: str  # "model", "dataset" or "space"
    name: str  # "owner/name"
    private: bool = False
    gated: str | bool = False  # "auto" or "manual": files only for the owner and the users in `access`
    sdk: str | None = None
    access: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.name.partition("/")[0]

    @property
    def path(self) -> str:
        return self.name if self.kind == "model" else f"{self.kind}s/{self.name}"

    def at(self, revision: str = "main") -> Commit:
        """The commit at a branch, a tag or a commit id."""
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        if commit not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[commit]

    def history(self, revision: str = "main") -> list[Commit]:
        """That commit and all before it, the newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds, for a test to compare."""
        return {path: blob.content for path, blob in self.at(revision).files.items()}

    def add(self, files: dict[str, Blob], message: str, author: str, branch: str = "main") -> Commit:
        """Put a commit that holds exactly these files at the tip of `branch`."""
        commit = Commit(self.branches.get(branch), files, message, author)
        self.commits.setdefault(commit.id, commit)
        self.branches[branch] = commit.id
        return commit


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").removeprefix("Bearer ")

    @property
    def user(self) -> str | None:
        return next((user for user, token in TOKENS.items() if token == self.token), None)

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def flag(self, name: str) -> bool:
        return self.query.get(name, [""])[0].lower() in ("true", "1")


@dataclass(frozen=True)
class Answer:
    body: bytes
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    """An error in the Hub's words: clients choose their exception by the status and the code in the header."""

    def __init__(self, status: int, code: str | None, message: str, headers: dict | None = None, **body):
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self.answer = Answer(json.dumps({"error": message, **body}).encode(), status, headers)


class LoopbackHub:
    """Serve a Hub for as long as the `with` block lasts.

    `endpoint` is its address, `requests` what was asked for so far, as (method, path without query), and `unserved` the
    part of it that no handler knows.
    """

    def __init__(self):
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lfs_objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.unserved: list[tuple[str, str]] = []
        self._faults: dict[str, list[int | None]] = {}
        self._requests_left: int | None = None
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """The whole environment of a child process at home in `home`, whose Hub this is, signed in with `token`.

        Clients read it as they are imported, so only a new process will do. Python's sockets there speak to no other
        machine, and whom they were to reach is in `contacted(home)`.
        """
        home = Path(home).resolve()
        guard = home / "guard" / "sitecustomize.py"
        guard.parent.mkdir(parents=True, exist_ok=True)
        guard.write_text(GUARD.format(log=str(home / "contacted.txt")), encoding="utf-8")
        settings = re.compile("HF_|HUGGING|TRANSFORMERS_|XDG_|.*_proxy$", re.IGNORECASE)
        environment = {name: value for name, value in os.environ.items() if not settings.match(name)}
        return {
            **environment,
            "HOME": str(home),
            "PYTHONUSERBASE": site.getuserbase(),  # where Python would look for packages under another home
            "PYTHONPATH": os.pathsep.join(filter(None, [str(guard.parent), environment.get("PYTHONPATH")])),
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home / "huggingface"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",  # else datasets and evaluate tell another server of every load
            **({"HF_TOKEN": token} if token else {}),
        }

    def contacted(self, home: Path) -> set[str]:
        """The hosts beyond this machine that children at home in `home` tried to reach."""
        log = Path(home) / "contacted.txt"
        return set(log.read_text(encoding="utf-8").split()) if log.exists() else set()

    def run(self, code: str, home: Path, token: str | None = None, timeout: float = 300) -> str:
        """What Python code printed, run in such a child. It must succeed, and try to reach no other machine."""
        home.mkdir(parents=True, exist_ok=True)
        command, environment = [sys.executable, "-c", code], self.environment(home, token)
        child = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=timeout)
        assert child.returncode == 0, f"{child.stdout[-2000:]}\n{child.stderr[-4000:]}"
        assert not self.contacted(home), f"a client tried to reach {self.contacted(home)}"
        return child.stdout

    def repository(self, name: str, kind: str = "model") -> Repository:
        return self.repositories[kind, name]

    def create(self, name: str, kind: str = "model", private: bool = False, gated: str | bool = False) -> Repository:
        """A new repository with its first commit."""
        repository = self.repositories[kind, name] = Repository(kind, name, private, gated)
        names = (LFS_NAMES + MEDIA_NAMES * (kind == "dataset")).split()
        attributes = Blob("".join(name + LFS_ATTRIBUTES for name in names).encode())
        repository.add({".gitattributes": attributes}, "initial commit", repository.owner)
        return repository

    def commit(self, name: str, files: dict[str, bytes], kind: str = "model", message: str = "Add files") -> str:
        """Add files to the main branch without a client, and return the commit's id."""
        repository = self.repository(name, kind)
        tip = repository.at()
        added = {path: Blob(file, tip.takes_as_lfs(path, len(file), file)) for path, file in files.items()}
        return repository.add(with_attributes({**tip.files, **added}), message, repository.owner).id

    def fail_next(self, handler: str, times: int = 1, status: int | None = 500):
        """Answer the next requests to one handler with `status`, or hang up on them where it is None.

        Handlers are named like the functions below: "preupload", "upload", "commit", "resolve". After a 429, a 5xx or
        a lost connection the clients try again, up to five times and seconds apart, but not a commit or a HEAD.
        """
        if handler not in {handler.__name__ for *_, handler in ROUTES}:
            raise ValueError(f"No handler is named {handler!r}.")
        self._faults.setdefault(handler, []).extend([status] * times)

    def break_after(self, requests: int):
        """Answer so many more requests, then hang up on every one until `mend()`."""
        self._requests_left = requests

    def mend(self):
        self._faults.clear()
        self._requests_left = None

    def answer(self, request: Request) -> Answer | None:
        """Hand a request to the first handler whose route fits it. None hangs up."""
        with self._lock:
            self.requests.append((request.method, unquote(request.path)))
            if self._requests_left is not None:
                self._requests_left -= 1
                if self._requests_left < 0:
                    return None
            method = "GET" if request.method == "HEAD" else request.method
            for wanted, pattern, access, handler in ROUTES:
                found = pattern.fullmatch(request.path)
                if wanted != method or not found:
                    continue
                if faults := self._faults.get(handler.__name__):
                    status = faults.pop(0)
                    return status and Refused(status, None, "broken by the test").answer
                try:
                    answer = handler(self, request, **self._arguments(request, access, found.groupdict()))
                except Refused as refused:
                    return refused.answer
                return answer if isinstance(answer, Answer) else Answer(json.dumps(answer).encode())
            self.unserved.append(self.requests[-1])
            return Refused(501, None, "The loopback Hub does not serve this.").answer

    def _arguments(self, request: Request, access: str | None, parts: dict[str, str | None]) -> dict:
        """The parts of an address as a handler wants them: the repository and the commit themselves, if allowed."""
        if request.token and request.user is None:
            raise Refused(401, None, "Invalid credentials in Authorization header")
        parts = {name: unquote(part) if part else None for name, part in parts.items()}
        if access is not None:
            repository = self.allowed(request, parts.pop("kind", None) or "models", parts.pop("repo"), access)
            parts["repository"] = repository
            if "commit" in parts:
                parts["commit"] = repository.at(parts["commit"] or "main")
        return parts

    def allowed(self, request: Request, kind: str, name: str, access: str) -> Repository:
        """The repository, where this user may "see" it, "fetch" its files or "write" to it."""
        repository = self.repositories.get((kind.removesuffix("s"), name))
        trusted = repository is not None and request.user in {repository.owner, *repository.access}
        signed_in = request.user is not None
        if repository is None or (repository.private and not trusted):
            raise Refused(404 if signed_in else 401, "RepoNotFound", "Repository not found")
        if access == "fetch" and repository.gated and not trusted:
            raise Refused(403 if signed_in else 401, "GatedRepo", f"Access to {repository.path} is restricted.")
        if access == "write":
            if not signed_in:  # clients read any 401 of the real Hub's https addresses as this code
                raise Refused(401, "RepoNotFound", "Invalid username or password")
            check_writer(request, repository.owner)
        return repository


ROUTES = []  # (method, pattern of the path, access, handler)


def route(method: str, path: str, access: str | None = None):
    """Make a function the handler of a path. What stands in braces there becomes its arguments."""
    patterns = {"kind": "models|datasets|spaces", "repo": "[^/]+(?:/[^/]+)?", "path": ".+"}
    pattern = re.sub(r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{patterns.get(name[1], '[^/]+')})", path)

    def add(handler):
        ROUTES.append((method, re.compile(pattern), access, handler))
        return handler

    return add


def check_writer(request: Request, namespace: str):
    if request.user is None:
        raise Refused(401, None, "Invalid username or password")
    if request.user != namespace or request.user == READER:
        raise Refused(403, None, f"You don't have the rights to write to {namespace}")


# Users and repositories


@route("GET", "/api/whoami-v2")
def whoami(hub, request):
    if request.user is None:
        raise Refused(401, None, "Invalid username or password")
    token = {"displayName": "tests", "role": "read" if request.user == READER else "write"}
    auth = {"type": "access_token", "accessToken": token}
    return {"type": "user", "id": request.user, "name": request.user, "orgs": [], "auth": auth}


@route("POST", "/api/validate-yaml")
def validate_yaml(hub, request):
    card = request.json()["content"]
    if not re.match(r"---\r?\n", card):
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    if metadata_block(card) is None:
        raise Refused(400, None, "Invalid metadata", errors=[{"message": "the metadata block does not end"}])
    return {"errors": [], "warnings": []}


def metadata_block(card: str) -> str | None:
    block = re.match(r"---\r?\n(.*?)^---\s*$", card, re.DOTALL | re.MULTILINE)
    return block and block[1]


@route("POST", "/api/repos/create")
def create_repository(hub, request):
    wanted = request.json()
    namespace = wanted.get("organization") or request.user
    check_writer(request, namespace)
    name, kind = f"{namespace}/{wanted['name']}", wanted.get("type") or "model"
    if (kind, name) in hub.repositories:
        url = f"{hub.endpoint}/{hub.repository(name, kind).path}"
        raise Refused(409, None, f"You already created this {kind} repo.", url=url)
    repository = hub.create(name, kind, private=wanted.get("visibility") == "private")
    repository.sdk = wanted.get("sdk")
    return {"url": f"{hub.endpoint}/{repository.path}", "name": name}


@route("DELETE", "/api/repos/delete")
def delete_repository(hub, request):
    wanted = request.json()
    name = f"{wanted.get('organization') or request.user}/{wanted['name']}"
    repository = hub.allowed(request, wanted.get("type") or "model", name, "write")
    del hub.repositories[repository.kind, name]
    return {}


@route("PUT", "/api/{kind}/{repo}/settings", "write")
def change_settings(hub, request, repository):
    settings = request.json()
    repository.gated = settings.get("gated", repository.gated)
    if "visibility" in settings:
        repository.private = settings["visibility"] == "private"
    return {}


@route("GET", "/api/{kind}/{repo}/auth-check", "fetch")
def check_access(hub, request, repository):
    return {}


# Branches, tags and commits


@route("GET", "/api/{kind}/{repo}/refs", "see")
def list_refs(hub, request, repository):
    def refs(folder, targets):
        return [{"name": name, "ref": f"refs/{folder}/{name}", "targetCommit": id} for name, id in targets.items()]

    branches, tags = refs("heads", repository.branches), refs("tags", repository.tags)
    return {"branches": branches, "tags": tags, "converts": [], "pullRequests": []}


@route("GET", "/api/{kind}/{repo}/commits/{commit}", "see")
def list_commits(hub, request, repository, commit):
    return [{**summary(each), "authors": [{"user": each.author}]} for each in repository.history(commit.id)]


def summary(commit: Commit) -> dict:
    title, _, message = commit.message.partition("\n\n")
    return {"id": commit.id, "title": title, "message": message, "date": commit.date}


@route("POST", "/api/{kind}/{repo}/branch/{branch}", "write")
def create_branch(hub, request, repository, branch):
    target = repository.at(request.json().get("startingPoint") or "main")
    if branch in repository.branches:
        raise Refused(409, None, f"Reference already exists: {branch}")
    repository.branches[branch] = target.id
    return {}


@route("POST", "/api/{kind}/{repo}/tag/{commit}", "write")
def create_tag(hub, request, repository, commit):
    tag = request.json()["tag"]
    if tag in repository.tags:
        raise Refused(409, None, f"Tag reference exists already: {tag}")
    repository.tags[tag] = commit.id
    return {}


@route("DELETE", "/api/{kind}/{repo}/branch/{branch}", "write")
def delete_branch(hub, request, repository, branch):
    if branch == "main":
        raise Refused(403, None, "The main branch cannot be deleted.")
    if repository.branches.pop(branch, None) is None:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {branch}")
    return {}


@route("DELETE", "/api/{kind}/{repo}/tag/{tag}", "write")
def delete_tag(hub, request, repository, tag):
    if repository.tags.pop(tag, None) is None:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {tag}")
    return {}


# Listings


def entry(repository: Repository, commit: Commit, path: str, expand: bool) -> dict:
    """A file or a folder as the Hub lists it; with `expand`, also the commit that last changed it."""
    found = {"type": "directory", "path": path, "oid": commit.id_of(path), "size": 0}
    if path in commit.files:
        blob = commit.files[path]
        found |= {"type": "file", "size": len(blob.content), **blob.lfs_entry("oid")}
    if expand:
        unchanged = itertools.takewhile(lambda c: c.id_of(path) == found["oid"], repository.history(commit.id))
        found["lastCommit"] = summary(list(unchanged)[-1])
    return found


@route("GET", "/api/{kind}/{repo}/tree/{commit}(?:/{path})?", "see")
def list_tree(hub, request, repository, commit, path):
    prefix = f"{path}/" if path else ""
    below = [name[len(prefix) :].split("/") for name in commit.files if name.startswith(prefix)]
    if path and not below:
        raise Refused(404, "EntryNotFound", f"{path} does not exist.", {"X-Repo-Commit": commit.id})
    names = {"/".join(parts[:depth]) for parts in below for depth in range(1, len(parts) + 1)}
    names = {name for name in names if "/" not in name or request.flag("recursive")}
    return [entry(repository, commit, prefix + name, request.flag("expand")) for name in sorted(names)]


@route("POST", "/api/{kind}/{repo}/paths-info/{commit}", "see")
def paths_info(hub, request, repository, commit):
    form = parse_qs(request.body.decode())
    paths = [path.strip("/") for path in form.get("paths", [])]
    expand = form.get("expand") in (["true"], ["True"])
    return [entry(repository, commit, path, expand) for path in paths if commit.id_of(path)]


@route("GET", "/api/{kind}/{repo}(?:/revision/{commit})?", "see")
def describe(hub, request, repository, commit):
    siblings = [{"rfilename": path} for path in commit.files]
    if request.flag("blobs"):
        for sibling, blob in zip(siblings, commit.files.values(), strict=True):
            sibling |= {"blobId": blob.git_id, "size": len(blob.content), **blob.lfs_entry("sha256")}
    block = metadata_block(commit.files.get("README.md", Blob(b"")).content.decode()) or ""
    return {
        "id": repository.name,
        "author": repository.owner,
        "sha": commit.id,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "createdAt": repository.history(commit.id)[-1].date,
        "lastModified": commit.date,
        "tags": [],
        "siblings": siblings,
        "sdk": repository.sdk,
        **dict(re.findall(r"^(pipeline_tag|library_name): *['\"]?([\w-]+)", block, re.MULTILINE)),
    }


# Uploads: preupload says how each file goes, LFS objects go one by one, and one commit makes all of it count


@route("POST", "/api/{kind}/{repo}/preupload/{commit}", "write")
def preupload(hub, request, repository, commit):
    answers = []
    for file in request.json()["files"]:
        path = file["path"]
        lfs = commit.takes_as_lfs(path, file["size"], base64.b64decode(file["sample"]))
        known = {"oid": commit.files[path].etag} if path in commit.files else {}
        answers.append({"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, **known})
    return {"files": answers}


@route("POST", r"/(?:{kind}/)?{repo}\.git/info/lfs/objects/batch", "write")
def batch(hub, request, repository):
    objects = [{"oid": each["oid"], "size": each["size"]} for each in request.json()["objects"]]
    for each in objects:
        if each["oid"] not in hub.lfs_objects:
            url = f"{hub.endpoint}/lfs-objects/{each['oid']}"
            each["actions"] = {"upload": {"href": url}, "verify": {"href": f"{url}/verify"}}
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/lfs-objects/{oid}")
def upload(hub, request, oid):
    if hashlib.sha256(request.body).hexdigest() != oid:
        raise Refused(400, None, "The content has another hash.")
    hub.lfs_objects[oid] = request.body
    return {}


@route("POST", "/lfs-objects/{oid}/verify")
def verify(hub, request, oid):
    if len(hub.lfs_objects.get(oid, b"")) != request.json()["size"]:
        raise Refused(404, None, "The object is not there, or not whole.")
    return {}


@route("POST", "/api/{kind}/{repo}/commit/{branch}", "write")
def commit(hub, request, repository, branch):
    if branch not in repository.branches:
        raise Refused(404, "RevisionNotFound", f"{branch} is not a branch.")
    tip = repository.at(branch)
    header, *operations = (json.loads(line) for line in request.body.splitlines())
    header = header["value"]
    if header.get("parentCommit", tip.id) != tip.id:
        raise Refused(412, None, "A commit has happened since. Please refresh and try again.")
    files = dict(tip.files)
    for operation in operations:
        key, path = operation["key"], operation["value"]["path"]
        if key == "file":
            files[path] = Blob(base64.b64decode(operation["value"]["content"]))
        elif key == "lfsFile":
            oid = operation["value"]["oid"]
            if oid not in hub.lfs_objects:
                raise Refused(400, None, f"The LFS object of {path} was never uploaded.")
            files[path] = Blob(hub.lfs_objects[oid], lfs=True)
        else:  # deletedFile, deletedFolder
            folder = path.rstrip("/") + "/"
            files = {name: blob for name, blob in files.items() if name != path and not name.startswith(folder)}
    message = "\n\n".join(filter(None, [header["summary"], header.get("description")]))
    made = repository.add(with_attributes(files), message, request.user, branch)
    return {"success": True, "commitOid": made.id, "commitUrl": f"{hub.endpoint}/{repository.path}/commit/{made.id}"}


def with_attributes(files: dict[str, Blob]) -> dict[str, Blob]:
    """The same files, with a line in `.gitattributes` for every LFS file that has none."""
    listed = Commit(None, files, "", "")
    lines = "".join(path + LFS_ATTRIBUTES for path, blob in files.items() if blob.lfs and not listed.lists_as_lfs(path))
    attributes = files.get(".gitattributes", Blob(b"")).content
    return {**files, ".gitattributes": Blob(attributes + lines.encode())} if lines else files


# Downloads


@route("GET", "/(?:{kind}/)?{repo}/resolve/{commit}/{path}", "fetch")
def resolve(hub, request, repository, commit, path):
    headers = {"X-Repo-Commit": commit.id}
    if path not in commit.files:
        raise Refused(404, "EntryNotFound", "Entry not found", headers)
    blob = commit.files[path]
    size = len(blob.content)
    headers |= {"ETag": f'"{blob.etag}"', "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.etag}"', "X-Linked-Size": str(size)}
    part = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not part or not any(part.groups()):
        return Answer(blob.content, 200, headers)
    first, last = part.groups()
    start = int(first) if first else max(size - int(last), 0)  # bytes=-n are the last n
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        raise Refused(416, None, "Range not satisfiable", {"Content-Range": f"bytes */{size}"})
    return Answer(blob.content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})


class _Handler(BaseHTTPRequestHandler):
    """HTTP on one side, `LoopbackHub.answer` on the other."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"  # connections are kept
    wbufsize = -1  # head and body leave together
    disable_nagle_algorithm = True

    def log_message(self, *_):
        """`hub.requests` is the log."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _serve(self):
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.hub.answer(Request(self.command, path, parse_qs(query), headers, self._body()))
        if answer is None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        for name, value in {"Content-Type": "application/json", **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve


@pytest.fixture(name="hub")
def loopback_hub():
    """An empty Hub. In a test file: `from loopback_hub import loopback_hub  # noqa: F401`, then the argument `hub`."""
    with LoopbackHub() as hub:
        yield hub
