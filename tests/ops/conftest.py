"""Our kernels in each form that this processor can run."""

import os

import pytest

from omma.ops.cpu import library


def _forms() -> dict[str, tuple]:
    if "OMMA_KERNELS" in os.environ:
        return {os.environ["OMMA_KERNELS"]: library.load()}
    forms: dict[str, tuple] = {}
    with pytest.MonkeyPatch.context() as patch:
        for setting in ("on", "avx512"):
            patch.setenv("OMMA_KERNELS", setting)
            library.load.cache_clear()
            forms[setting] = library.load()
    library.load.cache_clear()
    if forms["on"] == forms["avx512"]:  # no AMX on this machine, or no kernels at all
        del forms["avx512"]
    return forms


FORMS = _forms()


@pytest.fixture(params=FORMS)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load", lambda: FORMS[request.param])
