"""A small model behind the server's application, in this process."""

from collections.abc import Callable, Iterator

import pytest
import torch
from starlette.testclient import TestClient

from omma import backbones, weights
from omma.core.protocols import Preprocess
from omma.evaluation.calibration import limit
from omma.serving.app import application
from omma.serving.engine import Engine
from omma.serving.limits import Limits
from omma.serving.service import Service
from omma.weights.classifier import Calibration, Classifier, HeldOut

PREPROCESS = Preprocess(
    size=32, channels=3, low=(0.0,) * 3, high=(255.0,) * 3, mean=(0.5,) * 3, std=(0.25,) * 3
)
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A folder with a network and a random classifier of cat, dog and a/b."""
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/8", image_size=32, depth=2)
    classifier = Classifier(
        classes=("cat", "dog", "a/b"),
        weight=torch.randn(3, encoder.dim),
        calibration=Calibration(temperature=2.0, images=200),
        held_out=HeldOut(torch.linspace(0.3, 1, 200), torch.arange(200) >= 100),
    )
    folder = tmp_path_factory.mktemp("runs") / "x"
    weights.save(folder, encoder, PREPROCESS, {}, classifier.extras())
    return folder


@pytest.fixture(scope="session")
def engines(run) -> Callable[..., Engine]:
    """Engines by precision, prepared once."""
    made: dict[str, Engine] = {}
    types = {"fp32": torch.float32, "bf16": torch.bfloat16}

    def engine(precision: str = "fp32") -> Engine:
        if precision not in made:
            model, name = weights.named(run)
            assert model.classifier is not None
            made[precision] = Engine.of(model, name, CPU, types[precision], limit(model.classifier))
        return made[precision]

    return engine


@pytest.fixture
def served(engines) -> Iterator[Callable[..., TestClient]]:
    """A client of a new service; precision, limits and the engine may be given."""
    clients: list[TestClient] = []

    def serve(
        precision: str = "fp32", engine: Engine | None = None, wait: float = 0.0, **limits: float
    ) -> TestClient:
        service = Service(engine or engines(precision), Limits(**limits), wait)  # type: ignore[arg-type]
        hosts = ("127.0.0.1", "localhost")
        client = TestClient(
            application(service, hosts), base_url="http://127.0.0.1", raise_server_exceptions=False
        )
        client.service = service  # type: ignore[attr-defined]
        client.__enter__()
        clients.append(client)
        return client

    yield serve
    for client in clients:
        client.__exit__(None, None, None)
