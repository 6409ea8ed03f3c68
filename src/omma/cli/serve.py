"""`omma serve`: a model behind HTTP."""

import os

from omma.cli import early
from omma.cli.shared import As_, Model_, Place_, Share_, Size_, finished, say
from omma.cli.stages import Stages
from omma.core.sources import missing
from omma.core.words import count
from omma.serving.limits import Limits

DEFAULTS = Limits()


def serve(
    model: Model_,
    index: Place_ = None,
    port: int = 8000,
    host: str = "127.0.0.1",
    error: Share_ = None,
    threshold: Share_ = None,
    max_batch: Size_ = None,
    max_wait: float = 5.0,
    exact: bool = True,
    image_bytes: int = DEFAULTS.image_bytes,
    request_bytes: int = DEFAULTS.request_bytes,
    pixels: int = DEFAULTS.pixels,
    images: int = DEFAULTS.images,
    queue: int = DEFAULTS.queue,
    seconds: float = DEFAULTS.seconds,
    body_seconds: float = DEFAULTS.body_seconds,
    connections: int = DEFAULTS.connections,
    architecture: As_ = None,
    allow_partial: bool = False,
    device: str = "auto",
    precision: str = "auto",
) -> int:
    """Answer over HTTP: POST /predict, /embed, /search, /explain; a page to drop an image on; /docs.

    Ctrl-C or SIGTERM ends it: what was accepted is answered first. There is no login: others reach the server
    only with --host, and then need a proxy before it.

    Args:
        model: Run folder, weights file, timm:NAME or hf:NAME.
        index: Index to search for neighbours, made by omma index with the same model.
        port: 0 takes a free one.
        host: Address to listen at; 0.0.0.0 is every address of this machine.
        error: Share of wrong answers that is allowed (.05): less sure images abstain, as for predict.
        threshold: Instead, the probability below which images abstain.
        max_batch: Images of a forward pass, at most.
        max_wait: Milliseconds that an image waits for others to share a forward pass with.
        exact: Fill batches up where needed, so that answers are bit for bit those of predict and embed.
        image_bytes: Limit of an uploaded file.
        request_bytes: Limit of a request.
        pixels: Limit of what an image's header claims; larger ones are refused before they are decoded.
        images: Limit of images in a request.
        queue: Limit of images that wait; beyond it requests are refused with 429.
        seconds: Limit from a whole request to its answer.
        body_seconds: Limit in which a request must arrive.
        connections: Limit of open connections.
        architecture: The network that a weights file or folder holds, where omma does not recognise it.
        allow_partial: Accept weights that lack many of the network's parameters.
        device: cpu, cuda or mps.
        precision: fp32 or bf16.
    """
    early.model(model)
    if index is not None and not os.path.exists(index):
        raise missing(
            index, f"--index {index} does not exist: omma index MODEL IMAGES --out {index} makes it"
        )
    limits = Limits(
        image_bytes=image_bytes, request_bytes=request_bytes, pixels=pixels, images=images, queue=queue,
        seconds=seconds, body_seconds=body_seconds, connections=connections,
    )  # fmt: skip
    with Stages(f"reading {model} ...") as stages:
        from omma.core.device import keep_memory
        from omma.verbs.serve import Serving
        from omma.verbs.serve import serve as verb

        keep_memory()

        def ready(serving: Serving) -> None:
            stages.stop()
            for note in serving.notes:
                say(note)
            say(f"serving {model} at {serving.address}, endpoints at /docs; Ctrl-C ends it")

        result = verb(
            model, index=index, host=host, port=port, error=error, threshold=threshold, max_batch=max_batch,
            max_wait=max_wait, exact=exact, limits=limits, device=device, precision=precision,
            architecture=architecture, allow_partial=allow_partial, ready=ready,
        )  # fmt: skip
    say(f"ended after {count(result.requests, 'request')}, {count(result.images, 'image')} answered")
    return finished(result)
