"""A small Hub on loopback: the parts of its HTTP API that pushing and loading a model, and loading a data set, need,
and faults on request.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_goodtokenofana"


@dataclass
class Repository:
    """Files by branch; an LFS file is there by its SHA-256, its content in `FakeHub.blobs`."""

    private: bool
    gated: bool = False
    branches: dict[str, dict[str, bytes | str]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)


class FakeHub:
    """The server and what it holds. Its one user is ana, of the organisation lab.

    Attributes:
        repositories, blobs: what was pushed; a data set is called `datasets/OWNER/NAME`.
        requests: `METHOD /path` of every request, in order.
        fault: called with the method and path of each request; what it returns happens instead of an answer: a number
            is a status, `"cut"` closes the connection after part of the body was read, a float waits so many seconds
            and answers.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault: Callable[[str, str], int | float | str | None] = lambda method, path: None
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        found = self.repositories[name].branches[branch]
        return {path: self.blobs[content] if isinstance(content, str) else content for path, content in found.items()}

    def count(self, pattern: str) -> int:
        return sum(bool(re.fullmatch(pattern, request)) for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(f"{self.command} {path}")
        length = int(self.headers.get("Content-Length") or 0)
        fault = self.state.fault(self.command, path)
        if fault == "cut":
            self.rfile.read(length // 2)
            self.close_connection = True
            self.connection.close()
            return
        body = self.rfile.read(length) if length else self._chunks()
        if isinstance(fault, float):
            time.sleep(fault)
        elif isinstance(fault, int):
            return self._answer(fault, {"error": "the server broke"})
        for method, pattern, name in _ROUTES:
            if self.command in method and (match := re.fullmatch(pattern, path)):
                return getattr(self, name)(body, *match.groups())
        self._answer(404, {"error": f"no such route: {path}"})

    do_GET = do_HEAD = do_POST = do_PUT = _handle  # noqa: N815

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, content: object = b"", headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _writable(self, name: str) -> bool:
        if not self._known():
            self._answer(401, {"error": "Invalid credentials in Authorization header"})
        elif name.split("/")[0] not in ("ana", "lab"):
            self._answer(403, {"error": f"You don't have the rights to write to {name}"})
        elif name not in self.state.repositories:
            self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        else:
            return True
        return False

    def _readable(self, name: str) -> Repository | None:
        repository = self.state.repositories.get(name)
        if repository is None or (repository.private and not self._known()):
            self._answer(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _open(self, name: str, repository: Repository) -> bool:
        closed = repository.gated and not self._known()
        if closed:
            self._answer(401, {"error": f"Access to {name} is restricted"}, {"X-Error-Code": "GatedRepo"})
        return not closed

    def _revision(self, name: str, revision: str) -> str:
        """The branch that a branch or commit stands for."""
        branches = self.state.repositories[name].branches
        return (
            revision if revision in branches else next(b for b in branches if _commit(name, branches[b]) == revision)
        )

    # ---- routes

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization'] or 'ana'}/{asked['name']}"
        exists = name in self.state.repositories
        if not exists:
            self.state.repositories[name] = Repository(private=asked.get("visibility") == "private")
        if not self._writable(name):
            if not exists:
                del self.state.repositories[name]
            return
        answer = {"url": f"{self.state.endpoint}/{name}", "error": "You already created this model repo"}
        self._answer(409 if exists else 200, answer)

    def info(self, body: bytes, name: str, revision: str | None = None) -> None:
        repository = self._readable(name)
        if repository is not None:
            files = repository.branches[self._revision(name, revision or "main")]
            siblings = [{"rfilename": path} for path in files]
            facts = {"id": name, "modelId": name, "private": repository.private, "gated": repository.gated}
            self._answer(200, {**facts, "sha": _commit(name, files), "siblings": siblings, "tags": []})

    def tree(self, body: bytes, name: str, revision: str, folder: str | None = None) -> None:
        if self._readable(name) is not None:
            inside = f"{folder}/" if folder else ""
            deep = "recursive=true" in urlsplit(self.path).query.lower()
            found = self._paths(name, revision)
            self._answer(
                200,
                [
                    entry
                    for path, entry in found.items()
                    if path.startswith(inside) and (deep or "/" not in path.removeprefix(inside))
                ],
            )

    def paths_info(self, body: bytes, name: str, revision: str) -> None:
        if self._readable(name) is not None:
            asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode())["paths"]
            found = self._paths(name, revision)
            self._answer(200, [found[path] for path in asked if path in found])

    def _paths(self, name: str, revision: str) -> dict[str, dict[str, object]]:
        """By path, what the Hub says of each file and folder of a revision."""
        files = self.state.files(name, self._revision(name, revision))
        folders = sorted({str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."})
        found: dict[str, dict[str, object]] = {
            path: {"type": "directory", "path": path, "oid": ""} for path in folders
        }
        return found | {
            path: {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
            for path, content in files.items()
        }

    def refs(self, body: bytes, name: str) -> None:
        repository = self._readable(name)
        if repository is not None:
            branches = [
                {"name": branch, "ref": f"refs/heads/{branch}", "targetCommit": _commit(name, files)}
                for branch, files in repository.branches.items()
            ]
            self._answer(200, {"branches": branches, "converts": [], "tags": []})

    def auth_check(self, body: bytes, name: str) -> None:
        repository = self._readable(name)
        if repository is not None and self._open(name, repository):
            self._answer(200, {})

    def branch(self, body: bytes, name: str, branch: str) -> None:
        if self._writable(name):
            branches = self.state.repositories[name].branches
            exists = branch in branches
            branches.setdefault(branch, dict(branches["main"]))
            self._answer(409 if exists else 200, {})

    def validate(self, body: bytes) -> None:
        self._answer(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        if self._writable(name):
            files = self.state.repositories[name].branches[revision]
            listed = []
            for file in json.loads(body)["files"]:
                lfs = file["path"].endswith((".safetensors", ".png", ".pt", ".pth"))
                oid = _blob(content) if isinstance(content := files.get(file["path"]), bytes) else content
                kind = {"uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}
                listed.append({"path": file["path"], **kind})
            self._answer(200, {"files": listed})

    def batch(self, body: bytes, name: str) -> None:
        if self._writable(name):
            objects = []
            for item in json.loads(body)["objects"]:
                upload = {"upload": {"href": f"{self.state.endpoint}/storage/{item['oid']}"}}
                objects.append(item if item["oid"] in self.state.blobs else {**item, "actions": upload})
            self._answer(200, {"transfer": "basic", "objects": objects})

    def store(self, body: bytes, oid: str) -> None:
        whole = hashlib.sha256(body).hexdigest() == oid
        if whole:
            self.state.blobs[oid] = body
        self._answer(200 if whole else 400)

    def commit(self, body: bytes, name: str, revision: str) -> None:
        if self._writable(name):
            repository = self.state.repositories[name]
            files = dict(repository.branches[revision])
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    repository.commits.append(value["summary"])
                elif item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = value["oid"]
                elif item["key"] == "deletedFile":
                    del files[value["path"]]
            repository.branches[revision] = files
            oid = _commit(name, files)
            self._answer(200, {"commitUrl": f"{self.state.endpoint}/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, body: bytes, name: str, revision: str, path: str) -> None:
        repository = self._readable(name)
        if repository is None:
            return
        if not self._open(name, repository):
            return
        branch = self._revision(name, revision)
        headers = {"X-Repo-Commit": _commit(name, repository.branches[branch])}
        content = self.state.files(name, branch).get(path)
        if content is None:
            return self._answer(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound", **headers})
        headers["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        if part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(part[1]), min(int(part[2] or len(content)), len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            return self._answer(206, content[first : last + 1], headers)
        self._answer(200, content, headers)


_NAME = r"(?:models/)?((?:datasets/)?[^/]+/[^/]+)"
_ROUTES = [
    (("POST",), r"/api/repos/create", "create"),
    (("POST",), r"/api/validate-yaml", "validate"),
    (("POST",), r"/api/models/([^/]+/[^/]+)/branch/(.+)", "branch"),
    (("POST",), r"/api/models/([^/]+/[^/]+)/preupload/(.+)", "preupload"),
    (("POST",), r"/api/models/([^/]+/[^/]+)/commit/(.+)", "commit"),
    (("POST",), r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    (("PUT",), r"/storage/(\w+)", "store"),
    (("GET",), rf"/api/{_NAME}", "info"),
    (("GET",), rf"/api/{_NAME}/revision/(.+)", "info"),
    (("GET",), rf"/api/{_NAME}/tree/([^/]+)(?:/(.+))?", "tree"),
    (("POST",), rf"/api/{_NAME}/paths-info/([^/]+)", "paths_info"),
    (("GET",), rf"/api/{_NAME}/refs", "refs"),
    (("GET",), rf"/api/{_NAME}/auth-check", "auth_check"),
    (("GET", "HEAD"), rf"/{_NAME}/resolve/([^/]+)/(.+)", "resolve"),
]


def _blob(content: bytes) -> str:
    """Git's id of a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit(name: str, files: dict[str, bytes | str]) -> str:
    parts = [f"{path}:{_blob(c) if isinstance(c, bytes) else c}" for path, c in sorted(files.items())]
    return hashlib.sha1("\n".join([name, *parts]).encode()).hexdigest()
