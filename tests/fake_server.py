"""A server that speaks vLLM's API as far as a teacher needs it, and fails as it is told to."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


VOCABULARY = 24


def logp(token: int, position: int, offset: float = 0.0) -> float:
    """A log-probability that tells which token at which place it is of."""
    return -(0.1 + token + position / 100) - offset


class FakeServer:
    """Answers on a free port of this machine until it is stopped; `start` brings it back at the same address.

    Attributes:
        faults: what the next requests to `/v1/completions` meet, one each: functions of the handler and the body, which
            return True when they have answered (or hung up) themselves, and otherwise let the answer through.
        rule: such a function for every request that is not a probe.
        deaf: connections are accepted, and nothing is answered. noise: nats by which other sequences in a request change
            a sequence's log-probabilities.
        requests: bodies of the completions asked for, probes included. peak: most of them at the same time.
    """

    def __init__(self, **settings):
        self.model, self.root, self.max_model_len = "teacher", "/models/teacher", 64
        self.offset = 0.0  # another one is another model
        self.api_key: str | None = None
        self.detokenize: Callable[[list[int]], str] = lambda ids: "".join(map(chr, (97 + i for i in ids)))
        self.scale_by_temperature = False
        self.delay = self.noise = 0.0
        self.deaf = False
        self.faults: list[Callable] = []
        self.rule: Callable | None = None
        self.requests: list[dict] = []
        self.peak = self.active = 0
        self._port = 0
        for name, value in settings.items():
            setattr(self, name, value)
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        server = ThreadingHTTPServer(("127.0.0.1", self._port), _Handler)
        server.daemon_threads = True
        server.fake = self
        server.connections = set()
        self._server, self._port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._server.connections):
            with contextlib.suppress(OSError):  # it was closed already
                connection.shutdown(socket.SHUT_RDWR)

    def scored(self) -> list[dict]:
        """The requests that were not probes."""
        return [body for body in self.requests if len(body["prompt"][0]) < 20]

    def complete(self, body: dict) -> dict:
        choices = []
        for index, ids in enumerate(body["prompt"]):
            choice = {"index": index, "text": "", "finish_reason": "stop"}
            if "prompt_logprobs" in body:
                temperature = body["temperature"] if self.scale_by_temperature else 1.0
                offset = self.offset + (self.noise if len(body["prompt"]) > 1 else 0.0)
                values = [logp(token, place, offset) / temperature for place, token in enumerate(ids)]
                entries = [{str(t): {"logprob": v, "rank": 1}} for t, v in zip(ids, values, strict=True)]
                choice["prompt_logprobs"] = [None, *entries[1:]]
            if body.get("return_token_ids"):
                choice["token_ids"] = [body["seed"] % VOCABULARY, *ids[-1:], 1]
            choices.append(choice)
        return {"model": self.model, "choices": choices}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections.add(self.connection)

    def log_message(self, *args):
        return None

    def answer(self, status: int, body: dict | bytes, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        with contextlib.suppress(OSError):  # nobody may be waiting any more
            self.end_headers()
            self.wfile.write(data)

    def do_GET(self):
        fake = self.server.fake
        self._wait_while_deaf()
        if not self._authorized():
            return
        card = {"id": fake.model, "root": fake.root, "max_model_len": fake.max_model_len}
        self.answer(200, {"data": [card]})

    def do_POST(self):
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._wait_while_deaf()
        if not self._authorized():
            return
        if self.path == "/detokenize":
            self.answer(200, {"prompt": fake.detokenize(body["tokens"])})
            return
        if body["model"] != fake.model:
            message = f"The model `{body['model']}` does not exist."
            self.answer(404, {"error": {"message": message}})
            return
        fake.requests.append(body)
        fake.active += 1
        fake.peak = max(fake.peak, fake.active)
        try:
            time.sleep(fake.delay)
            probe = len(body["prompt"][0]) >= 20
            if not probe and fake.rule is not None and fake.rule(self, body):
                return
            if not probe and fake.faults and fake.faults.pop(0)(self, body):
                return
            try:
                answer = fake.complete(body)
            except OSError as error:
                self.answer(500, {"error": {"message": str(error)}})
                return
            self.answer(200, answer)
        finally:
            fake.active -= 1

    def _wait_while_deaf(self) -> None:
        while self.server.fake.deaf:
            time.sleep(0.05)

    def _authorized(self) -> bool:
        key = self.server.fake.api_key
        if key is not None and self.headers.get("Authorization") != f"Bearer {key}":
            self.answer(401, {"error": {"message": "Unauthorized"}})
            return False
        return True


# Faults


def status(code: int, message: str = "no", **headers: str) -> Callable:
    return lambda handler, body: handler.answer(code, {"error": {"message": message}}, **headers) or True


def hang(seconds: float) -> Callable:
    return lambda handler, body: time.sleep(seconds)


def hang_up(handler, body) -> bool:
    handler.close_connection = True
    return True


def truncated(handler, body) -> bool:
    data = json.dumps(handler.server.fake.complete(body)).encode()
    handler.answer(200, data[: len(data) // 2], Content_Length=str(len(data)))
    handler.close_connection = True
    return True


def trickle(seconds: float) -> Callable:
    """The answer byte by byte, over so many seconds."""

    def fault(handler, body) -> bool:
        data = json.dumps(handler.server.fake.complete(body)).encode()
        with contextlib.suppress(OSError):
            handler.answer(200, b"", Content_Length=str(len(data)))
            for byte in data:
                handler.wfile.write(bytes([byte]))
                time.sleep(seconds / len(data))
        return True

    return fault


def not_gzip(handler, body) -> bool:
    handler.answer(200, b"no gzip", Content_Encoding="gzip")
    return True


def cut_json(handler, body) -> bool:
    data = json.dumps(handler.server.fake.complete(body)).encode()
    handler.answer(200, data[: len(data) // 2])
    return True


def changed(change: Callable[[dict], None]) -> Callable:
    def fault(handler, body) -> bool:
        answer = handler.server.fake.complete(body)
        change(answer)
        handler.answer(200, answer)
        return True

    return fault
