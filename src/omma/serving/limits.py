"""What one client may ask of the server, and for how long."""

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of requests, each refused with its own status; sizes in bytes, times in seconds.

    Raises ValueError for a limit that is not positive, and for a request that no queue could hold.
    """

    image_bytes: int = 32 << 20  # of one encoded image: 413
    request_bytes: int = 64 << 20  # of a request's body: 413
    pixels: int = 64_000_000  # that an image's header claims; it is refused before it is decoded: 422
    images: int = 32  # a request: 413
    queue: int = 256  # images that are accepted and not answered: 429
    seconds: float = 30.0  # from the last byte of a request to its answer: 504
    body_seconds: float = 30.0  # in which a request's body must arrive: 408
    connections: int = 256  # open at once; a further one is closed: 503

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value}: must be positive")
        if self.images > self.queue:
            raise ValueError(
                f"images={self.images} a request: the queue holds {self.queue}; "
                "choose fewer, or a longer queue"
            )

    @property
    def held_bytes(self) -> int:
        """Of all bodies in memory at once; a further request has to wait: 429."""
        return 4 * self.request_bytes
