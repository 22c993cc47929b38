"""A local server with the Hugging Face Hub's interface; its repositories are folders."""

import contextlib
import hashlib
import json
import re
import sys
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        mode = self.server.mode
        path = urllib.parse.unquote(self.path.split("?")[0])
        self.server.requests.append(path)
        if mode == "silent":
            self.server.is_over.wait(600)
        if mode == "trickle":
            self.send_response(200)
            for _ in range(600):
                self.wfile.write(b"X")
                self.wfile.flush()
                if self.server.is_over.wait(1):
                    break
        if mode in ("silent", "trickle"):
            self.close_connection = True
            return None
        if mode in (403, 407, 429, 503):
            return self.send(mode, b"refused")
        if mode == "web page":
            return self.send(200, b"<html>Please log in to the guest network</html>", "text/html")
        api = re.fullmatch(
            r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/[^/]+(/.*)?)?",
            path,
        )
        file = re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
        kind, name = (api[1], api[2]) if api else ("", "")
        if file:
            kind, name = ("datasets" if file[1] else "models"), file[2]
        folder = self.server.repositories.get((kind, name))
        if folder is None:
            return self.send(404, b"{}", code="RepoNotFound")
        if file:
            return self.send_file(folder / file[3])
        if api[3] == "tree":
            return self.send_json(self.tree(folder, (api[4] or "").strip("/")))
        if api[3] == "paths-info":
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = json.loads(body) if body.startswith("{") else urllib.parse.parse_qs(body)
            return self.send_json(
                [e for p in form["paths"] for e in self.tree(folder, p, exact=True)]
            )
        siblings = [{"rfilename": entry["path"]} for entry in self.tree(folder) if "size" in entry]
        self.send_json(
            {"id": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
        )

    do_HEAD = do_POST = do_GET

    def tree(self, folder: Path, under: str = "", exact: bool = False) -> list[dict]:
        entries = []
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if name == under if exact else name.startswith(under and under + "/"):
                if path.is_dir():
                    entries.append({"type": "directory", "path": name, "oid": "0" * 40})
                else:
                    size, oid = path.stat().st_size, hashlib.sha1(path.read_bytes()).hexdigest()
                    entries.append({"type": "file", "path": name, "size": size, "oid": oid})
        return entries

    def send_json(self, value: object) -> None:
        self.send(200, json.dumps(value).encode(), "application/json")

    def send_file(self, path: Path) -> None:
        if not path.is_file():
            return self.send(404, b"", code="EntryNotFound")
        content = path.read_bytes()
        start = re.match(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
        cut = self.server.mode == "cut" and path.suffix == ".safetensors"
        self.send(
            200, content, etag=hashlib.sha1(content).hexdigest(), start=int(start[1]), cut=cut
        )

    def send(
        self,
        status: int,
        content: bytes,
        kind: str = "text/plain",
        code: str | None = None,
        etag: str | None = None,
        start: int = 0,
        cut: bool = False,
    ) -> None:
        self.send_response(206 if start else status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content) - start))
        if code:
            self.send_header("X-Error-Code", code)
        if etag:
            self.send_header("ETag", f'"{etag}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[start : start + 1000 if cut else None])
        if cut and self.command != "HEAD":
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, address: object) -> None:
        # A client may end before the answer.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, address)


@contextlib.contextmanager
def hub(repositories: dict[tuple[str, str], Path], mode: object = "whole") -> Iterator[Server]:
    """Serve `repositories`, {("models" or "datasets", name): folder}, at the server's `url`.

    `mode` is "whole", "cut" (weights end early), "silent", "trickle" (a byte a second), "web page",
    or the HTTP status of an error.
    """
    server = Server(("127.0.0.1", 0), Handler)
    server.is_over = Event()
    server.repositories, server.mode, server.requests = repositories, mode, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.is_over.set()
        server.shutdown()
        server.server_close()
