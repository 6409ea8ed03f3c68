"""What the engine knows of a method whose classifier is judged on held-out images while it trains."""

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Float
from torch import Tensor, nn

from omma.core.protocols import Extras, Method
from omma.weights.classifier import Classifier


class Classifies(Method):
    """A method whose classifier is judged on held-out images while it trains."""

    head: nn.Linear  # of the pooled feature
    begun: bool  # has the head learned before, in the run that the weights are from?

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """In evaluation mode, with the weights that would be exported now (a moving average, say)."""
        training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(training)

    def logits(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        """Of normalised images, within `evaluated`."""
        raise NotImplementedError

    def classifier(self) -> Classifier:
        """As it is now, not calibrated."""
        raise NotImplementedError

    def extras(self) -> Extras:
        """The classifier."""
        return self.classifier().extras()

    def keep(self) -> None:
        """Remember the weights that are `evaluated` as the best so far."""
        raise NotImplementedError

    def settle(self, best: bool) -> None:
        """After training: from now on the weights are the best ones, or those that would be exported now."""
        raise NotImplementedError
