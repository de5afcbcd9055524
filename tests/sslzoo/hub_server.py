"""A stand-in for the Hugging Face Hub on 127.0.0.1: the HTTP endpoints that its client uses to push and fetch models.

Two servers, as on the real Hub: the one that repositories live on, and a store for large files, which it redirects to.
It breaks on demand: answers with errors, cuts downloads, demands tokens. Every request is kept in `requests`.
"""

import base64
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

BAD_TOKEN = "Invalid credentials in Authorization header"
Files = dict[str, bytes]


class RefusedError(Exception):
    """An answer that is an error: status, the header X-Error-Code, the words."""

    def __init__(self, status: int, code: str = "", words: str = "") -> None:
        super().__init__(status, code, words)
        self.status, self.code, self.words = status, code, words


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, message: str) -> str:
        sha = secrets.token_hex(20)
        self.commits[sha] = files
        self.refs["main"] = sha
        self.messages.append(message)
        return sha

    @property
    def files(self) -> Files:
        return self.commits[self.refs["main"]]


@dataclass
class Fault:
    """Answer `status` to the next `times` requests whose "METHOD path" matches."""

    pattern: str
    status: int
    times: float = float("inf")


class Hub:
    """The state of the stand-in, and its two servers. Tokens: "writer" may all in org, "reader" may only read."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: Files = {}
        self.tokens = {"writer": "org", "reader": "guest"}
        self.faults: list[Fault] = []
        self.cuts: float = 0  # this many downloads of large files end half-way
        self.meeting: threading.Barrier | None = None  # asking for a revision waits for as many processes
        self.requests: list[str] = []
        self.lock = threading.Lock()
        self._servers = [_serve(self, _Pages), _serve(self, _Store)]
        self.url, self.store = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add(self, name: str, files: Files, *, private: bool = False, gated: bool = False) -> Repository:
        repository = self.repositories[name] = Repository(private, gated)
        self.large |= {hashlib.sha256(content).hexdigest(): content for content in files.values()}
        repository.commit(files, "first")
        return repository

    def count(self, pattern: str) -> int:
        return sum(bool(re.search(pattern, request)) for request in self.requests)

    def note(self, request: str) -> None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    raise RefusedError(fault.status, words="injected")

    def take_cut(self) -> bool:
        with self.lock:
            self.cuts -= 1
            return self.cuts >= 0


def git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def digest(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if is_large(path) else git_digest(content)


def _serve(hub: Hub, handler: type["_Handler"]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub}))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    routes: ClassVar[list[tuple[str, str, str]]]  # method, pattern of the path, name of the method that answers

    def answer(self) -> None:
        self.body = self.read_body()
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        try:
            self.hub.note(f"{self.command} {unquote(self.path)}")
            for method, pattern, name in self.routes:
                match = re.fullmatch(pattern, parts.path)
                if match and self.command in method.split():
                    getattr(self, name)(*map(unquote, match.groups()))
                    return
            raise RefusedError(404, words=f"the stand-in has no {self.command} {parts.path}")
        except RefusedError as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.words}
            self.json({"error": error.words}, error.status, {k: v for k, v in headers.items() if v})

    do_GET = do_HEAD = do_POST = do_PUT = answer  # noqa: N815

    def read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.reply(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def reply(self, content: bytes, status: int, headers: dict[str, str], *, cut_at: int | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut_at])
        if cut_at is not None:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


class _Pages(_Handler):
    """The Hub itself."""

    routes: ClassVar = [
        ("GET", "/api/whoami-v2", "whoami"),
        ("POST", "/api/repos/create", "create"),
        ("POST", "/api/validate-yaml", "validate"),
        ("POST", "/api/models/([^/]+/[^/]+)/preupload/main", "preupload"),
        ("POST", "/api/models/([^/]+/[^/]+)/commit/main", "commit"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/verify", "verify"),
        ("GET", "/api/models/([^/]+/[^/]+)", "model"),
        ("GET", "/api/models/([^/]+/[^/]+)/revision/([^/]+)", "model"),
        ("GET", "/api/models/([^/]+/[^/]+)/tree/([^/]+)", "tree"),
        ("GET HEAD", "/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
    ]

    def user(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise RefusedError(401, words=BAD_TOKEN)
        return self.hub.tokens.get(token)

    def repository(self, name: str) -> Repository:
        user, found = self.user(), self.hub.repositories.get(name)
        if found is None or (found.private and user != name.partition("/")[0]):
            raise (
                RefusedError(404, "RepoNotFound", "Repository not found")
                if user
                else RefusedError(401, words="Who are you?")
            )
        return found

    def writable(self, name: str) -> None:
        if self.user() != name.partition("/")[0]:
            raise RefusedError(403, words="You don't have the rights to do this under this namespace")

    def revision(self, repository: Repository, revision: str) -> tuple[str, Files]:
        sha = repository.refs.get(revision, revision)
        if sha not in repository.commits:
            raise RefusedError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return sha, repository.commits[sha]

    def whoami(self) -> None:
        if (user := self.user()) is None:
            raise RefusedError(401, words=BAD_TOKEN)
        self.json({"name": user, "type": "user", "orgs": []})

    def create(self) -> None:
        wish = json.loads(self.body)
        name = f"{wish['organization']}/{wish['name']}"
        self.writable(name)
        exists = name in self.hub.repositories
        if not exists:
            self.hub.add(name, {".gitattributes": b""}, private=wish.get("visibility") == "private")
        self.json({"url": f"{self.hub.url}/{name}"}, 409 if exists else 200)

    def validate(self) -> None:
        start = json.loads(self.body)["content"].startswith("---\n")
        self.json({"errors": [] if start else [{"message": "no metadata"}], "warnings": []}, 200 if start else 400)

    def preupload(self, name: str) -> None:
        self.writable(name)
        files = self.repository(name).files
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            answer = {"path": path, "uploadMode": "lfs" if is_large(path) else "regular", "shouldIgnore": False}
            answers.append(answer | ({"oid": digest(path, files[path])} if path in files else {}))
        self.json({"files": answers})

    def batch(self, name: str) -> None:
        self.writable(name)
        objects = []
        for item in json.loads(self.body)["objects"]:
            actions = {
                "upload": {"href": f"{self.hub.store}/{item['oid']}"},
                "verify": {"href": f"{self.hub.url}/{name}.git/info/lfs/verify"},
            }
            objects.append(item | ({} if item["oid"] in self.hub.large else {"actions": actions}))
        self.json({"transfer": "basic", "objects": objects})

    def verify(self, name: str) -> None:
        self.writable(name)
        item = json.loads(self.body)
        if len(self.hub.large.get(item["oid"], b"")) != item["size"]:
            raise RefusedError(400, words="not uploaded")
        self.json({})

    def commit(self, name: str) -> None:
        self.writable(name)
        repository = self.repository(name)
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        files = dict(repository.files)
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            else:
                raise RefusedError(400, words=f"the stand-in knows no {operation['key']}")
        sha = repository.commit(files, header["value"]["summary"])
        self.json({"commitOid": sha, "commitUrl": f"{self.hub.url}/{name}/commit/{sha}"})

    def model(self, name: str, revision: str = "main") -> None:
        repository = self.repository(name)
        if self.hub.meeting is not None:
            self.hub.meeting.wait(timeout=60)
        sha, files = self.revision(repository, revision)
        siblings = [{"rfilename": path, **self.facts(path, files)} for path in files] if "blobs" in self.query else []
        self.json(
            {
                "id": name,
                "sha": sha,
                "private": repository.private,
                "siblings": siblings or [{"rfilename": path} for path in files],
                "tags": ["timm"],
                "library_name": "timm",
            }
        )

    def facts(self, path: str, files: Files) -> dict[str, Any]:
        content = files[path]
        if not is_large(path):
            return {"size": len(content), "blobId": git_digest(content)}
        oid = digest(path, content)  # git itself has a pointer, and the digest of that
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n".encode()
        lfs = {"oid": oid, "sha256": oid, "size": len(content), "pointerSize": len(pointer)}
        return {"size": len(content), "blobId": git_digest(pointer), "lfs": lfs}

    def tree(self, name: str, revision: str) -> None:
        _, files = self.revision(self.repository(name), revision)
        facts = {path: self.facts(path, files) for path in files}
        self.json([{"type": "file", "path": path, "oid": fact["blobId"], **fact} for path, fact in facts.items()])

    def resolve(self, name: str, revision: str, path: str) -> None:
        repository = self.repository(name)
        if repository.gated and self.user() != name.partition("/")[0]:
            raise RefusedError(403 if self.user() else 401, "GatedRepo", f"Access to model {name} is restricted")
        sha, files = self.revision(repository, revision)
        if path not in files:
            raise RefusedError(404, "EntryNotFound", "Entry not found")
        tag = f'"{digest(path, files[path])}"'
        if not is_large(path):
            self.reply(files[path], 200, {"X-Repo-Commit": sha, "ETag": tag})
            return
        place = f"{self.hub.store}/{tag.strip(chr(34))}"
        size = str(len(files[path]))
        headers = {"X-Repo-Commit": sha, "X-Linked-Etag": tag, "X-Linked-Size": size, "Location": place}
        self.reply(b"", 302, headers)


class _Store(_Handler):
    """Large files, by SHA-256. Needs no token, and must never be shown one."""

    routes: ClassVar = [("PUT", "/([0-9a-f]{64})", "put"), ("GET HEAD", "/([0-9a-f]{64})", "get")]

    def put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.large[oid] = self.body
        self.json({})

    def get(self, oid: str) -> None:
        if self.headers.get("Authorization"):
            raise RefusedError(400, words="a token was sent to the store")
        content = self.hub.large[oid]
        start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        at = int(start[1]) if start else 0
        cut_at = max(len(content) // 2 - at, 0) if self.command == "GET" and self.hub.take_cut() else None
        headers = {"Content-Range": f"bytes {at}-{len(content) - 1}/{len(content)}"} if start else {}
        self.reply(content[at:], 206 if start else 200, headers, cut_at=cut_at)
