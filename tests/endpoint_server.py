"""A real local server with the OpenAI routes, whose answers and failures a test scripts.

    with serve(lambda asked: Say("a red bus")) as server:
        Server(url=server.url, model="toy")
        ...
        server.asked  # what came in, in order of arrival

A script is a function of what was asked; it may look at `asked.number`, or at the words, and fail as often as it likes.
"""

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    number: int
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)

    @property
    def system(self) -> str:
        """The system message of a chat."""
        return self.json["messages"][0]["content"]

    @property
    def text(self) -> str:
        """All texts of the user's message."""
        return "\n".join(part["text"] for part in self._parts() if part["type"] == "text")

    @property
    def images(self) -> list[bytes]:
        urls = [part["image_url"]["url"] for part in self._parts() if part["type"] == "image_url"]
        return [base64.b64decode(url.partition(",")[2]) for url in urls]

    def _parts(self) -> list[dict[str, Any]]:
        return self.json["messages"][1]["content"]


@dataclass(frozen=True)
class Say:
    """A chat completion. `first` are the likeliest first tokens with log-probabilities."""

    text: str | None
    first: tuple[tuple[str, float], ...] = ()
    finish: str = "stop"
    usage: tuple[int, int] | None = (100, 10)


@dataclass(frozen=True)
class Draw:
    """An edited image."""

    content: bytes
    usage: tuple[int, int] | None = None


@dataclass(frozen=True)
class Fail:
    """A status that is an error."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    message: str = "scripted failure"


@dataclass(frozen=True)
class Hang:
    """No answer until the server closes."""


@dataclass(frozen=True)
class Drip:
    """An answer that goes on and on, a byte at a time, and never ends."""


@dataclass(frozen=True)
class Cut:
    """The connection ends in the middle of the answer."""


@dataclass(frozen=True)
class Raw:
    """A status of 200 with whatever body."""

    body: bytes
    kind: str = "application/json"


Answer = Say | Draw | Fail | Hang | Drip | Cut | Raw
Script = Callable[[Asked], Answer]


class EndpointServer:
    """What a test sees of a running server. `asked` and `answered`, those with a whole answer, grow."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.answered: list[Asked] = []
        self.most_at_once = 0
        self.closing = threading.Event()
        self._under_way = 0
        self._lock = threading.Lock()
        self._http = _Http(("127.0.0.1", 0), _handler_of(self))
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def arrive(self, path: str, headers: Mapping[str, str], body: bytes) -> Asked:
        with self._lock:
            asked = Asked(len(self.asked), path, headers, body)
            self.asked.append(asked)
            self._under_way += 1
            self.most_at_once = max(self.most_at_once, self._under_way)
            return asked

    def leave(self, asked: Asked, *, answered: bool) -> None:
        with self._lock:
            self._under_way -= 1
            if answered:
                self.answered.append(asked)

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        return thread

    def stop(self, thread: threading.Thread) -> None:
        self.closing.set()
        self._http.shutdown()
        thread.join()
        self._http.server_close()


@contextmanager
def serve(script: Script) -> Iterator[EndpointServer]:
    """Run a server on a free port of this machine."""
    server = EndpointServer(script)
    thread = server.start()
    try:
        yield server
    finally:
        server.stop(thread)


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    """More than any test asks at once. With the library's 5, connections are reset where threads are slow to start."""

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is part of the tests."""


def _handler_of(server: EndpointServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = server.arrive(self.path, headers, body)
            answer = server.script(asked)
            server.leave(asked, answered=isinstance(answer, Say | Draw))
            self._send(answer, asked)

        def _send(self, answer: Answer, asked: Asked) -> None:
            match answer:
                case Hang():
                    server.closing.wait()
                    self.close_connection = True
                case Drip():
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", "100000")
                    self.end_headers()
                    while not server.closing.wait(0.05):
                        self.wfile.write(b" ")
                    self.close_connection = True
                case Cut():
                    self.send_response(200)
                    self.send_header("Content-Type", "application/json")
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    self.wfile.write(b'{"choices": [')
                    self.close_connection = True
                case Fail():
                    error = {"error": {"message": answer.message, "type": "scripted", "param": None, "code": None}}
                    self._reply(answer.status, json.dumps(error).encode(), "application/json", answer.headers)
                case Raw():
                    self._reply(200, answer.body, answer.kind, {})
                case Say() | Draw():
                    content = _chat(answer, asked) if isinstance(answer, Say) else _drawn(answer)
                    self._reply(200, json.dumps(content).encode(), "application/json", {})

        def _reply(self, status: int, body: bytes, kind: str, headers: Mapping[str, str]) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _chat(say: Say, asked: Asked) -> dict[str, Any]:
    choice: dict[str, Any] = {
        "index": 0,
        "finish_reason": say.finish,
        "message": {"role": "assistant", "content": say.text},
        "logprobs": None,
    }
    if asked.json.get("logprobs"):
        likeliest = [{"token": token, "logprob": value, "bytes": None} for token, value in say.first]
        choice["logprobs"] = {"content": [{**likeliest[0], "top_logprobs": likeliest}] if likeliest else []}
    completion = {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": asked.json["model"],
        "choices": [choice],
    }
    if say.usage is not None:
        sent, received = say.usage
        completion["usage"] = {
            "prompt_tokens": sent,
            "completion_tokens": received,
            "total_tokens": sent + received,
        }
    return completion


def _drawn(draw: Draw) -> dict[str, Any]:
    images: dict[str, Any] = {"created": 0, "data": [{"b64_json": base64.b64encode(draw.content).decode()}]}
    if draw.usage is not None:
        sent, received = draw.usage
        images["usage"] = {"input_tokens": sent, "output_tokens": received, "total_tokens": sent + received}
    return images
