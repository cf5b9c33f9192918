"""A small model hub on loopback: what huggingface_hub needs of the real one's API.

Repositories are folders of bytes in memory. A gated one wants a token; a write wants one too.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_secret"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the server holds, and what it was asked for: (method, path) in order."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)
    objects: dict[str, bytes] = field(default_factory=dict)
    commits: list[str] = field(default_factory=list)
    url: str = ""


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub on a free port until the block ends."""

    class Handler(_Handler):
        shelf = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    shelf: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Tests print nothing."""

    def do_GET(self) -> None:
        self._route("GET")

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        path = self.path.partition("?")[0]
        self.shelf.asked.append((method, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match:
                answer(self, **match.groupdict())
                return
        self._json({"error": "unknown"}, 404)

    def _json(self, value: object, status: int = 200, **headers: str) -> None:
        self._bytes(json.dumps(value).encode(), status, **headers)

    def _bytes(self, data: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refused(self, repo: str, revision: str = "main") -> bool:
        """Whether the repository or its revision is not there; then that is answered."""
        if repo not in self.shelf.repositories:
            self._json({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif revision not in ("main", COMMIT):
            self._json({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        else:
            return False
        return True

    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def info(self, repo: str, revision: str | None = None) -> None:
        if not self._refused(repo, revision or "main"):
            files = [{"rfilename": name} for name in self.shelf.repositories[repo]]
            self._json({"id": repo, "sha": COMMIT, "siblings": files, "private": False})

    def tree(self, repo: str, revision: str) -> None:
        if not self._refused(repo, revision):
            files = self.shelf.repositories[repo].items()
            self._json(
                [{"type": "file", "path": n, "size": len(d), "oid": _sha1(d)} for n, d in files]
            )

    def file(self, repo: str, revision: str, name: str) -> None:
        if self._refused(repo, revision):
            return
        if repo in self.shelf.gated and not self._may():
            self._json({"error": "gated"}, 401, X_Error_Code="GatedRepo")
            return
        data = self.shelf.repositories[repo][name]
        self._bytes(data, ETag=f'"{_sha1(data)}"', X_Repo_Commit=COMMIT)

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        if not self._may():
            self._json({"error": "Invalid username or password."}, 401)
            return
        self.shelf.repositories.setdefault(repo, {})
        self._json({"url": f"{self.shelf.url}/{repo}"})

    def validate(self) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self) -> None:
        files = json.loads(self.body)["files"]
        self._json(
            {
                "files": [
                    {
                        "path": f["path"],
                        "uploadMode": "lfs" if f["path"].endswith(".gguf") else "regular",
                        "shouldIgnore": False,
                    }
                    for f in files
                ]
            }
        )

    def batch(self) -> None:
        objects = json.loads(self.body)["objects"]
        for o in objects:
            o["actions"] = {"upload": {"href": f"{self.shelf.url}/objects/{o['oid']}"}}
        self._json({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.shelf.objects[oid] = self.body
        self._bytes(b"")

    def commit(self, repo: str) -> None:
        head, *lines = map(json.loads, self.body.splitlines())
        self.shelf.commits.append(head["value"]["summary"])
        for line in lines:
            value = line["value"]
            data = (
                self.shelf.objects[value["oid"]]
                if line["key"] == "lfsFile"
                else base64.b64decode(value["content"])
            )
            self.shelf.repositories[repo][value["path"]] = data
        self._json({"commitUrl": f"{self.shelf.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT})


def _sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = [
    (r"/api/repos/create", _Handler.create),
    (r"/api/validate-yaml", _Handler.validate),
    (rf"/api/models/{_REPO}", _Handler.info),
    (rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)", _Handler.info),
    (rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)", _Handler.tree),
    (r"/api/models/[^/]+/[^/]+/preupload/main", _Handler.preupload),
    (rf"/api/models/{_REPO}/commit/main", _Handler.commit),
    (r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/objects/(?P<oid>[0-9a-f]+)", _Handler.put),
    (rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.file),
]
