"""A model as a Ray Serve deployment: `python docs/examples/ray_serve.py MODEL [REPLICAS]`; Ctrl-C ends it."""

import os
import sys
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray sends usage statistics by default

from ray import serve

from omma.serving.build import application_of


def deployment(model: str, replicas: int = 1, gpus: float = 0, **options: Any) -> serve.Application:
    """Replicas of a model, each with its own queue and batches; options: those of `omma.serve`."""

    @serve.deployment(
        num_replicas=replicas,
        max_ongoing_requests=64,
        ray_actor_options={"num_gpus": gpus},
        health_check_period_s=10,
    )
    @serve.ingress(lambda: application_of(model, **options))
    class Omma:
        pass

    return Omma.bind()


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": 8000})
    serve.run(deployment(os.path.abspath(sys.argv[1]), *map(int, sys.argv[2:])), name="omma", blocking=True)
