"""A stand-in for Google Cloud Storage: the part of its JSON API that clients use here.

Objects lie in memory. They appear whole when an upload ends, as in the real store.
"""

import base64
import contextlib
import hashlib
import http.server
import itertools
import json
import re
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

BUCKET = "bucket"

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
_COPY = re.compile(
    _OBJECT.pattern + r"/(rewriteTo|copyTo|moveTo)(?:/b/[^/]+)?/o/([^/]+)"
)
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o/?")
_BUCKET = re.compile(r"/storage/v1/b/([^/]+)/?")
_UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o/?")

_NOT_FOUND = {"error": {"code": 404, "message": "No such object"}}


class Store:
    """The objects of one bucket.

    Attributes:
        url: where the server answers, for the clients.
        objects: content of each object, by its name.
        before_write: called with the name of each object that is about to be written
            or deleted; returns the status of an error to answer with, or None.
    """

    def __init__(self) -> None:
        self.url = ""
        self.objects: dict[str, bytes] = {}
        self.before_write: Callable[[str], int | None] = lambda name: None
        self._generations: dict[str, int] = {}
        self._counter = itertools.count(1)
        self._lock = threading.Lock()

    def environment(self) -> dict[str, str]:
        """Environment variables that point clients to this store."""
        return {"STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url}

    def put(self, name: str, content: bytes, only_at: str | None) -> bool:
        """Write an object; False if its generation is not the expected one."""
        with self._lock:
            if only_at not in (None, str(self._generations.get(name, 0))):
                return False
            self.objects[name] = content
            self._generations[name] = next(self._counter)
            return True

    def delete(self, name: str) -> bool:
        """Delete an object; False if there is none."""
        with self._lock:
            self._generations.pop(name, None)
            return self.objects.pop(name, None) is not None

    def describe(self, name: str) -> dict[str, Any]:
        """The metadata of an object."""
        content = self.objects[name]
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "size": str(len(content)),
            "generation": str(self._generations[name]),
            "metageneration": "1",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
        }

    def list(self, query: dict[str, str]) -> dict[str, Any]:
        """List objects, and what a delimiter makes of their names."""
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        with self._lock:
            for name in sorted(self.objects):
                if not name.startswith(prefix) or name < query.get("startOffset", ""):
                    continue
                if "endOffset" in query and name >= query["endOffset"]:
                    continue
                rest = name[len(prefix) :]
                if delimiter and delimiter in rest:
                    prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
                else:
                    items.append(self.describe(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


class _Server(http.server.ThreadingHTTPServer):
    """Answers each request in a thread of its own."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing of a client that was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request."""

    protocol_version = "HTTP/1.1"
    # Else each answer waits 40 ms for the client's acknowledgement of its first part.
    disable_nagle_algorithm = True
    wbufsize = -1
    store: Store
    sessions: dict[str, tuple[str, str | None, bytes]]

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        path, query = self._parse()
        if match := _OBJECT.fullmatch(path):
            name = urllib.parse.unquote(match[2])
            if name not in self.store.objects:
                self._send(404, _NOT_FOUND)
            elif query.get("alt") == "media":
                self._send_content(name)
            else:
                self._send(200, self.store.describe(name))
        elif match := _LIST.fullmatch(path):
            self._send(*self._if_bucket(match[1], self.store.list(query)))
        elif match := _BUCKET.fullmatch(path):
            self._send(*self._if_bucket(match[1], {"name": BUCKET}))
        else:
            self._send(501, {"error": {"code": 501, "message": self.path}})

    def do_POST(self) -> None:
        path, query = self._parse()
        body = self._body()
        if match := _COPY.fullmatch(path):
            source, target = (urllib.parse.unquote(match[i]) for i in (2, 4))
            if source not in self.store.objects:
                self._send(404, _NOT_FOUND)
                return
            self.store.put(target, self.store.objects[source], None)
            if match[3] == "moveTo":
                self.store.delete(source)
            made = self.store.describe(target)
            self._send(200, made | {"done": True, "resource": made})
        elif match := _UPLOAD.fullmatch(path):
            if match[1] != BUCKET:
                self._send(*self._if_bucket(match[1], {}))
            elif "session" in query:
                self._continue(query["session"], body)
            elif query["uploadType"] == "resumable":
                key = str(len(self.sessions))
                name = query.get("name") or json.loads(body)["name"]
                self.sessions[key] = name, query.get("ifGenerationMatch"), b""
                place = f"{self.store.url}/upload/storage/v1/b/{BUCKET}/o?session={key}"
                self._send(200, {}, {"Location": place})
            else:
                self._put(*self._parse_upload(query, body), query)
        else:
            self._send(501, {"error": {"code": 501, "message": self.path}})

    def do_PUT(self) -> None:
        _, query = self._parse()
        self._continue(query["session"], self._body())

    def _continue(self, session: str, chunk: bytes) -> None:
        """Add a chunk to an upload of several requests; the last one ends it."""
        name, generation, before = self.sessions[session]
        content = before + chunk
        self.sessions[session] = name, generation, content
        total = self.headers["Content-Range"].rpartition("/")[2]
        if total == "*" or len(content) < int(total):
            self._send(308, {}, {"Range": f"bytes=0-{len(content) - 1}"})
        else:
            self._put(name, content, {"ifGenerationMatch": generation})

    def do_DELETE(self) -> None:
        path, _ = self._parse()
        match = _OBJECT.fullmatch(path)
        name = urllib.parse.unquote(match[2]) if match else ""
        if status := self.store.before_write(name):
            self._send(status, {"error": {"code": status, "message": "refused"}})
        elif self.store.delete(name):
            self._send(204, None)
        else:
            self._send(404, _NOT_FOUND)

    def _put(self, name: str, content: bytes, query: dict[str, Any]) -> None:
        if status := self.store.before_write(name):
            self._send(status, {"error": {"code": status, "message": "refused"}})
        elif self.store.put(name, content, query.get("ifGenerationMatch")):
            self._send(200, self.store.describe(name))
        else:
            self._send(412, {"error": {"code": 412, "message": "conditionNotMet"}})

    def _parse_upload(self, query: dict[str, str], body: bytes) -> tuple[str, bytes]:
        """Split the body of an upload of one request into name and content."""
        if query["uploadType"] == "media":
            return query["name"], body
        # The blank line after a part's header, and the line end after the part.
        _, metadata, content, _ = re.split(_boundary(self.headers), body)
        name = json.loads(re.split(rb"\r?\n\r?\n", metadata, maxsplit=1)[1])["name"]
        return name, re.split(rb"\r?\n\r?\n", content, maxsplit=1)[1]

    def _send_content(self, name: str) -> None:
        content = self.store.objects[name]
        generation = self.store.describe(name)["generation"]
        headers = {"x-goog-generation": generation, "ETag": generation}
        status, wanted = 200, self.headers.get("Range")
        if wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            stop = min(int(last) + 1 if last else len(content), len(content))
            if int(first) >= max(len(content), 1):
                self._send(416, {})
                return
            total = len(content)
            content, status = content[int(first) : stop], 206
            headers["Content-Range"] = f"bytes {first}-{stop - 1}/{total}"
        self._send(status, content, headers)

    def _if_bucket(self, name: str, answer: dict[str, Any]) -> tuple[int, Any]:
        if name == BUCKET:
            return 200, answer
        error = {"code": 404, "message": "The specified bucket does not exist."}
        return 404, {"error": error}

    def _parse(self) -> tuple[str, dict[str, str]]:
        parts = urllib.parse.urlsplit(self.path)
        return parts.path, dict(urllib.parse.parse_qsl(parts.query))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _send(
        self, status: int, answer: Any, headers: dict[str, str] | None = None
    ) -> None:
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        content = b"" if answer is None else content
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client was killed
            self.wfile.write(content)


def _boundary(headers: Any) -> bytes:
    """A pattern of the line between the parts of a request's body."""
    text = re.findall(r"boundary=['\"]?([^'\";]+)", headers["Content-Type"])[0]
    return rb"(?:\r?\n)?--" + re.escape(text.encode())


@contextlib.contextmanager
def serve() -> Iterator[Store]:
    """Serve an empty bucket on a free port of this machine."""
    store = Store()
    handler = type("Handler", (_Handler,), {"store": store, "sessions": {}})
    server = _Server(("127.0.0.1", 0), handler)
    store.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
