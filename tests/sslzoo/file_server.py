"""A web server on 127.0.0.1 that gives files, as those that authors publish on: ranges, ETags, and faults on demand."""

import hashlib
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class FileServer:
    """Files by path, and how they are given.

    Attributes:
        files: Path below the root -> its content.
        cuts: So many answers end half-way.
        status: So many answers are this error: (status, times).
        ranges: Whether parts of files are given.
        tags: Whether answers have an ETag.
        moved: Path below the root -> the URL that its answer redirects to.
        log: "path" or "path from N" of each request.
    """

    files: dict[str, bytes | Path] = field(default_factory=dict)
    cuts: int = 0
    status: tuple[int, float] = (200, 0)
    ranges: bool = True
    tags: bool = True
    moved: dict[str, str] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"state": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fault(self) -> int | None:
        status, times = self.status
        self.status = status, times - 1
        return status if times > 0 else None

    def cut(self) -> bool:
        self.cuts -= 1
        return self.cuts >= 0


class _Handler(BaseHTTPRequestHandler):
    state: FileServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted else 0
        self.state.log.append(f"{path} from {start}" if start else path)
        assert "Authorization" not in self.headers
        if status := self.state.fault():
            self.answer(status, b"", {})
        elif path in self.state.moved:
            self.answer(302, b"", {"Location": self.state.moved[path]})
        elif path not in self.state.files:
            self.answer(404, b"", {})
        else:
            self.give(self.state.files[path], start)

    def give(self, file: bytes | Path, start: int) -> None:
        content = file if isinstance(file, bytes) else file.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        headers = {"ETag": tag} if self.state.tags else {}
        if not self.state.ranges or self.headers.get("If-Range", tag) != tag:
            start = 0
        if start >= len(content) > 0:
            self.answer(416, b"", {})
            return
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206 if start else 200, content[start:], headers)

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if content and self.state.cut():
            content = content[: len(content) // 2]
            self.close_connection = True
        self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass
