"""Serve a trained digit reader over HTTP, and teach it more while it serves.

`POST /infer`   {"instance": [64 pixels, 0 to 16]} or {"instances": [[...], ...]}
`POST /train`   {"instances": [[...], ...], "labels": [...], "epochs": 5}
`GET /healthz`  whether it takes requests, and the model's version
`GET /metrics`  for Prometheus

Loads what `train_cnn.py` wrote: a model file, or a folder of checkpoints. Requests that arrive
together are answered by one pass through the network. On TERM it stops listening, answers what
it has accepted and exits 0.
"""

import argparse
import asyncio
import copy
import json
import os
import signal
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from aiohttp import web
from aiohttp.typedefs import Handler
from checkpoints import load_model, save_model
from digits import MAX_PIXEL, N_CLASSES, N_PIXELS, accuracy, digits_cnn, to_images
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, exposition
from torch import Tensor, nn
from torch.nn import functional

MAX_INSTANCES = 1024
"""Images in one request."""
MAX_BATCH = 256
"""Images in one pass through the network."""
MAX_WAITING = 256
"""Requests that wait for a pass; more are told to come back (503)."""
MAX_EPOCHS = 50
MAX_BODY_BYTES = 4 << 20
DRAIN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One version of what is served. Never changed: training makes the next one."""

    network: nn.Module
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the network said about some images."""

    labels: list[int]
    probabilities: list[float]
    version: int


class Busy(Exception):
    """More requests wait than will be answered in good time."""


class Reader:
    """Answers requests in batches with the current model, one pass at a time."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self._waiting: asyncio.Queue[tuple[Tensor, asyncio.Future[Answer]]] = asyncio.Queue(
            MAX_WAITING
        )

    async def read(self, images: Tensor) -> Answer:
        """Return labels for some images. Raises `Busy`."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            self._waiting.put_nowait((images, answer))
        except asyncio.QueueFull:
            raise Busy from None
        return await answer

    async def run(self) -> None:
        """Answer until cancelled. Whatever arrived during a pass shares the next one."""
        while True:
            requests = [await self._waiting.get()]
            n_images = len(requests[0][0])
            while n_images < MAX_BATCH and not self._waiting.empty():
                requests.append(self._waiting.get_nowait())
                n_images += len(requests[-1][0])
            model = self.model
            images = torch.cat([images for images, _ in requests])
            try:
                passed = await asyncio.to_thread(forward, model.network, images)
            except RuntimeError as error:
                for _, answer in requests:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            self._hand_out(requests, passed, version=model.version)

    def _hand_out(
        self,
        requests: list[tuple[Tensor, asyncio.Future[Answer]]],
        passed: tuple[list[float], list[int]],
        *,
        version: int,
    ) -> None:
        probabilities, labels = passed
        start = 0
        for images, answer in requests:
            mine = slice(start, start := start + len(images))
            if not answer.done():  # its client may have gone
                answer.set_result(
                    Answer(
                        labels=labels[mine], probabilities=probabilities[mine], version=version
                    )
                )


@torch.inference_mode()
def forward(network: nn.Module, images: Tensor) -> tuple[list[float], list[int]]:
    """Return the probability and the label of the best class of each image."""
    best = functional.softmax(network(images), dim=1).max(dim=1)
    return best.values.tolist(), best.indices.tolist()


def fine_tune(model: Model, images: Tensor, labels: Tensor, *, epochs: int) -> Model:
    """Return the next version, taught some images; the present one stays as it is."""
    network = copy.deepcopy(model.network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4)
    order = torch.Generator().manual_seed(model.version)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels), generator=order).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    return Model(network=network, version=model.version + 1)


def load(path: Path) -> Model:
    """Return the model that training, or an earlier service, left."""
    state = load_model(path)
    network = digits_cnn()
    network.load_state_dict(state["model"])
    return Model(network=network, version=int(state.get("version", 1)))


def newest(folder: Path, *, taught: Path) -> Path:
    """Return what was written last: what this service was taught, or what training left."""
    trained_at_s = max((path.stat().st_mtime for path in folder.glob("step-*.pt")), default=0)
    return taught if taught.exists() and taught.stat().st_mtime > trained_at_s else folder


class Service:
    """The HTTP endpoints and their measurements."""

    def __init__(self, reader: Reader, saved_at: Path) -> None:
        self._reader = reader
        self._saved_at = saved_at
        self._training = asyncio.Lock()
        self.is_draining = False
        self.metrics = CollectorRegistry()
        self._requests = Counter(
            "digits_requests", "Requests answered.", ("path", "status"), registry=self.metrics
        )
        self._latency_s = Histogram(
            "digits_request_duration_seconds",
            "Time from a request to its answer.",
            ("path",),
            registry=self.metrics,
        )
        self._images = Counter("digits_images", "Images read.", registry=self.metrics)
        self._version = Gauge(
            "digits_model_version", "Version of the model that answers.", registry=self.metrics
        )
        self._version.set_function(lambda: reader.model.version)

    def application(self) -> web.Application:
        """Return the routes."""
        app = web.Application(middlewares=[self._measured], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.post("/infer", self.infer),
                web.post("/train", self.train),
                web.get("/healthz", self.healthz),
                web.get("/metrics", self.show_metrics),
            ]
        )
        return app

    async def infer(self, request: web.Request) -> web.Response:
        """Read one image, or several."""
        body = await json_object(request, allowed={"instance", "instances"})
        if ("instance" in body) == ("instances" in body):
            raise bad_request("give either instance or instances")
        is_single = "instance" in body
        images = parse_images([body["instance"]] if is_single else body["instances"])
        try:
            answer = await self._reader.read(images)
        except Busy:
            raise refusal(web.HTTPServiceUnavailable, "too many requests wait") from None
        self._images.inc(len(images))
        predictions = [
            {"label": label, "probability": round(probability, 6)}
            for label, probability in zip(answer.labels, answer.probabilities, strict=True)
        ]
        shown = predictions[0] if is_single else {"predictions": predictions}
        return web.json_response({**shown, "model_version": answer.version})

    async def train(self, request: web.Request) -> web.Response:
        """Teach a copy of the model the posted images; it answers from then on."""
        body = await json_object(request, allowed={"instances", "labels", "epochs"})
        images = parse_images(body.get("instances"))
        labels = parse_labels(body.get("labels"), n_images=len(images))
        epochs = body.get("epochs", 5)
        if type(epochs) is not int or not 1 <= epochs <= MAX_EPOCHS:
            raise bad_request(f"epochs must be a whole number from 1 to {MAX_EPOCHS}")
        if self._training.locked():
            raise refusal(web.HTTPConflict, "it is being taught right now; try again")
        async with self._training:
            before = self._reader.model
            after = await asyncio.to_thread(fine_tune, before, images, labels, epochs=epochs)
            scores = [
                await asyncio.to_thread(accuracy, model.network, images, labels)
                for model in (before, after)
            ]
            state = {"model": after.network.state_dict(), "version": after.version}
            await asyncio.to_thread(save_model, self._saved_at, state)
            self._reader.model = after
        return web.json_response(
            {
                "model_version": after.version,
                "accuracy_before": round(scores[0], 4),
                "accuracy_after": round(scores[1], 4),
            }
        )

    async def healthz(self, request: web.Request) -> web.Response:
        """Say whether this takes requests."""
        return web.json_response(
            {
                "status": "draining" if self.is_draining else "ok",
                "model_version": self._reader.model.version,
            },
            status=503 if self.is_draining else 200,
        )

    async def show_metrics(self, request: web.Request) -> web.Response:
        """Show what Prometheus collects."""
        return web.Response(
            body=exposition.generate_latest(self.metrics),
            headers={"Content-Type": exposition.CONTENT_TYPE_LATEST},
        )

    @web.middleware
    async def _measured(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        route = request.match_info.route.resource
        path = route.canonical if route else "unknown"  # a name per route, not per guess
        started_s, status = time.monotonic(), 500
        try:
            response = await handler(request)
            status = response.status
        except web.HTTPException as refused:
            status = refused.status
            raise
        else:
            return response
        finally:
            self._requests.labels(path, status).inc()
            self._latency_s.labels(path).observe(time.monotonic() - started_s)


def refusal(kind: type[web.HTTPError], message: str) -> web.HTTPError:
    """Return an answer that says in JSON what is wrong."""
    return kind(text=json.dumps({"error": message}), content_type="application/json")


def bad_request(message: str) -> web.HTTPError:
    """Return a refusal of what was sent."""
    return refusal(web.HTTPBadRequest, message)


async def json_object(request: web.Request, *, allowed: set[str]) -> dict[str, Any]:
    """Return the body, or refuse it."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        raise bad_request("the body must be JSON") from None
    if not isinstance(body, dict):
        raise bad_request("the body must be a JSON object")
    if unknown := sorted(body.keys() - allowed):
        raise bad_request(f"unknown field {unknown[0]!r}; known: {', '.join(sorted(allowed))}")
    return body


def parse_images(instances: object) -> Tensor:
    """Return images ready for the network, or refuse them."""
    if not isinstance(instances, list) or not 1 <= len(instances) <= MAX_INSTANCES:
        raise bad_request(f"instances must be a list of 1 to {MAX_INSTANCES} images")
    for index, pixels in enumerate(instances):
        if not isinstance(pixels, list) or len(pixels) != N_PIXELS:
            raise bad_request(f"image {index} must be a list of {N_PIXELS} numbers")
        for pixel in pixels:
            # NaN is a float that no comparison accepts.
            if type(pixel) not in {int, float} or not 0 <= pixel <= MAX_PIXEL:
                raise bad_request(
                    f"image {index}: {json.dumps(pixel)[:40]} is not from 0 to {MAX_PIXEL:g}"
                )
    return to_images(np.asarray(instances, dtype=np.float64))


def parse_labels(labels: object, *, n_images: int) -> Tensor:
    """Return one label for each image, or refuse them."""
    if not isinstance(labels, list) or len(labels) != n_images:
        raise bad_request(f"labels must be a list of {n_images}, one for each image")
    for label in labels:
        if type(label) is not int or not 0 <= label < N_CLASSES:
            raise bad_request(f"{json.dumps(label)[:40]} is not a label")
    return torch.tensor(labels)


async def serve(model: Model, saved_at: Path, listener: socket.socket) -> None:
    """Serve until TERM, then finish what was accepted."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    reader = Reader(model)
    service = Service(reader, saved_at)
    runner = web.AppRunner(service.application(), shutdown_timeout=DRAIN_S, access_log=None)
    await runner.setup()
    async with asyncio.TaskGroup() as tasks:
        reading = tasks.create_task(reader.run(), name="read")
        await web.SockSite(runner, listener).start()
        host, port = listener.getsockname()[:2]
        print(f"serving version {model.version} on http://{host}:{port}", flush=True)
        await stop.wait()
        service.is_draining = True
        await runner.cleanup()
        reading.cancel()
    print("stopped: answered everything that was accepted", flush=True)


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="a file, or checkpoints")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=int(os.environ.get("LEPTON_PORT") or 8000))
    parser.add_argument("--threads", type=int, default=1, help="of one pass")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    saved_at = source = args.model
    if args.model.is_dir():
        saved_at = args.model / "served.pt"
        source = newest(args.model, taught=saved_at)
    model = load(source)
    listener = socket.create_server((args.host, args.port))
    asyncio.run(serve(model, saved_at, listener))


if __name__ == "__main__":
    main()
