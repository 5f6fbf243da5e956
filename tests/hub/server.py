"""A stand-in for the Hub on the loopback: the endpoints that `huggingface_hub` uses, over real HTTP.

It keeps repositories in memory as the Hub keeps them: commits that hold whole trees, branches that point at commits,
pull requests under `refs/pr/`, large files in a store of their own that is served from another host name.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = (".safetensors", ".bin", ".png")


@dataclass
class Repository:
    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        told = repr(
            (len(self.commits), sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items()))
        )
        sha = hashlib.sha1(told.encode()).hexdigest()
        self.commits[sha] = files
        self.branches[branch] = sha
        self.titles.append(title)
        return sha

    def resolve(self, revision: str) -> str | None:
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class Hub:
    """The stand-in. `with Hub() as hub:` serves until the block ends.

    Attributes:
        repositories: by id.
        tokens: those that may read and write, with the name of their owner; `readers` may read only.
        requests: method and path of every request, in order.
        cut: `(method, pattern)` of requests whose connection is reset after half of what they send was read.
        mute: `(method, pattern)` of requests that are carried out, and whose connection is reset before the answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens = {"hf_writer": "jane"}
        self.readers = {"hf_reader"}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.cut: tuple[str, str] | None = None
        self.mute: tuple[str, str] | None = None
        self.lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.store = f"http://localhost:{self.port}/store"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def create(self, repo_id: str, private: bool = False) -> Repository:
        """A repository as the Hub creates it: with one commit that says what is a large file."""
        repository = self.repositories[repo_id] = Repository(private)
        repository.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return repository

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """What a revision holds, by name."""
        repository = self.repositories[repo_id]
        return repository.commits[repository.branches[revision]]

    def count(self, method: str, pattern: str) -> int:
        """How many requests there were."""
        return sum(m == method and re.search(pattern, path) is not None for m, path in self.requests)


class _Refused(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self.hub.lock:
            self.hub.requests.append((self.command, self.path))
        length = int(self.headers.get("Content-Length") or 0)
        if self.is_one_of(self.hub.cut):
            self.rfile.read(length // 2)
            self.reset()
            return
        self.body = self._chunked() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        for method, pattern, respond in _ROUTES:
            match = re.fullmatch(pattern, url.path)
            if match and self.command in method:
                try:
                    with self.hub.lock:
                        respond(self, *map(unquote, match.groups()))
                except _Refused as refused:
                    headers = {"X-Error-Code": refused.code, "X-Error-Message": str(refused)}
                    self.send(refused.status, {"error": str(refused)}, headers)
                return
        self.send(501, {"error": f"the stand-in has no {self.command} {url.path}"})

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def is_one_of(self, requests: tuple[str, str] | None) -> bool:
        return requests is not None and self.command == requests[0] and re.search(requests[1], self.path) is not None

    def reset(self) -> None:
        """An abrupt end: what is under way is lost, not brought to its end."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def send(self, status: int, content: Any = b"", headers: dict[str, str] | None = None) -> None:
        if self.is_one_of(self.hub.mute):
            self.reset()
            return
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def token(self) -> str | None:
        said = self.headers.get("Authorization", "")
        return said.removeprefix("Bearer ") or None

    def readable(self, repo_id: str) -> Repository:
        repository = self.hub.repositories.get(repo_id)
        known = self.token in self.hub.tokens or self.token in self.hub.readers
        if repository is None or (repository.private and not known):
            # as the Hub has it, who may not see a repository is not told that it is there
            raise _Refused(404 if known else 401, "RepoNotFound", "Repository not found")
        return repository

    def writer(self) -> str:
        if self.token is None:
            raise _Refused(401, "", "Invalid username or password.")
        if self.token not in self.hub.tokens:
            raise _Refused(403, "", "You don't have the rights")
        return self.hub.tokens[self.token]

    def commit_of(self, repository: Repository, revision: str) -> str:
        sha = repository.resolve(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha

    def create_repo(self) -> None:
        owner = self.writer()
        asked = json.loads(self.body)
        repo_id = f"{asked.get('organization') or owner}/{asked['name']}"
        told = {"url": f"{self.hub.endpoint}/{repo_id}", "name": repo_id}
        if repo_id in self.hub.repositories:
            self.send(409, told | {"error": "You already created this model repo"})
            return
        self.hub.create(repo_id, private=asked.get("visibility") == "private")
        self.send(200, told)

    def validate(self) -> None:
        head = re.match(r"---\n.*?\n---\n", json.loads(self.body)["content"], flags=re.DOTALL)
        self.send(200 if head else 400, {"errors": [] if head else [{"message": "no metadata"}], "warnings": []})

    def info(self, repo_id: str, revision: str = "main") -> None:
        repository = self.readable(repo_id)
        sha = self.commit_of(repository, revision)
        siblings = [{"rfilename": name} for name in repository.commits[sha]]
        told = {"id": repo_id, "modelId": repo_id, "sha": sha, "private": repository.private, "tags": []}
        self.send(200, told | {"siblings": siblings, "downloads": 0, "likes": 0})

    def tree(self, repo_id: str, revision: str) -> None:
        repository = self.readable(repo_id)
        files = repository.commits[self.commit_of(repository, revision)]
        self.send(200, [_entry(name, data) for name, data in files.items()])

    def branch(self, repo_id: str, name: str) -> None:
        self.writer()
        repository = self.readable(repo_id)
        if name in repository.branches:
            raise _Refused(409, "", f"Reference already exists: refs/heads/{name}")
        repository.branches[name] = repository.branches["main"]
        self.send(201)

    def preupload(self, repo_id: str, revision: str) -> None:
        self.writer()
        repository = self.readable(repo_id)
        files = repository.commits[self.commit_of(repository, revision)]
        told = []
        for file in json.loads(self.body)["files"]:
            name = file["path"]
            oid = _entry(name, files[name]) if name in files else {}
            large = name.endswith(LARGE)
            told.append(
                {
                    "path": name,
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": oid.get("lfs", {}).get("oid") or oid.get("oid"),
                }
            )
        self.send(200, {"files": told})

    def batch(self, repo_id: str) -> None:
        self.writer()
        self.readable(repo_id)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            told = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.large:
                upload = {"href": f"{self.hub.store}/{wanted['oid']}"}
                verify = {"href": f"{self.hub.endpoint}/{repo_id}.git/info/lfs/objects/verify"}
                told["actions"] = {"upload": upload, "verify": verify}
            objects.append(told)
        self.send(200, {"transfer": "basic", "objects": objects})

    def verify(self, repo_id: str) -> None:
        asked = json.loads(self.body)
        held = self.hub.large.get(asked["oid"])
        self.send(200 if held is not None and len(held) == asked["size"] else 404)

    def upload(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, "", "the content is not what was announced")
        self.hub.large[oid] = self.body
        self.send(200)

    def download(self, oid: str) -> None:
        if self.token is not None:
            raise _Refused(400, "", "a token must not leave the Hub")
        self.send(200, self.hub.large[oid])

    def commit(self, repo_id: str, revision: str) -> None:
        self.writer()
        repository = self.readable(repo_id)
        files = dict(repository.commits[self.commit_of(repository, revision)])
        header, *operations = (json.loads(line) for line in self.body.splitlines())
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                if value["oid"] not in self.hub.large:
                    raise _Refused(400, "", f"{value['path']} was not uploaded")
                files[value["path"]] = self.hub.large[value["oid"]]
            elif kind != "deletedFile":
                raise _Refused(400, "", f"unknown operation {kind}")
            elif files.pop(value["path"], None) is None:
                raise _Refused(404, "EntryNotFound", "A file with this name doesn't exist")
        told = {}
        if self.query.get("create_pr"):
            number = 1 + sum(name.startswith("refs/pr/") for name in repository.branches)
            revision = f"refs/pr/{number}"
            told["pullRequestUrl"] = f"{self.hub.endpoint}/{repo_id}/discussions/{number}"
        sha = repository.commit(revision, files, header["value"]["summary"])
        self.send(200, told | {"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{sha}", "commitOid": sha})

    def resolve(self, repo_id: str, revision: str, name: str) -> None:
        repository = self.readable(repo_id)
        sha = self.commit_of(repository, revision)
        files = repository.commits[sha]
        if name not in files:
            self.send(404, {}, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
            return
        entry = _entry(name, files[name])
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"'}
        if "lfs" not in entry:
            self.send(200, files[name], headers)
            return
        oid = entry["lfs"]["oid"]
        self.hub.large[oid] = files[name]
        linked = {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(entry["size"])}
        self.send(302, b"", headers | linked | {"Location": f"{self.hub.store}/{oid}"})


def _entry(name: str, data: bytes) -> dict[str, Any]:
    """A file as the tree lists it: git's hash of it, or of the pointer that stands for a large one."""
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(data)}
    if name.endswith(LARGE):
        oid = hashlib.sha256(data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(data)}\n".encode()
        entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": len(pointer)}
        data = pointer
    return entry | {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


_REPO = "([^/]+/[^/]+)"
_ROUTES = (
    (("POST",), "/api/repos/create", _Handler.create_repo),
    (("POST",), "/api/validate-yaml", _Handler.validate),
    (("GET",), f"/api/models/{_REPO}", _Handler.info),
    (("GET",), f"/api/models/{_REPO}/revision/(.+)", _Handler.info),
    (("GET",), f"/api/models/{_REPO}/tree/([^/]+)", _Handler.tree),
    (("POST",), f"/api/models/{_REPO}/branch/(.+)", _Handler.branch),
    (("POST",), f"/api/models/{_REPO}/preupload/([^/]+)", _Handler.preupload),
    (("POST",), f"/api/models/{_REPO}/commit/([^/]+)", _Handler.commit),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (("POST",), rf"/{_REPO}\.git/info/lfs/objects/verify", _Handler.verify),
    (("PUT",), "/store/([0-9a-f]{64})", _Handler.upload),
    (("GET", "HEAD"), "/store/([0-9a-f]{64})", _Handler.download),
    (("GET", "HEAD"), f"/{_REPO}/resolve/([^/]+)/(.+)", _Handler.resolve),
)
