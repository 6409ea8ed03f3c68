"""A request refuses, when it is made, what cannot be meant."""

import pytest

from omma.pretraining.request import Request, chosen


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_warmup": 0.0}, "head_warmup is about weights to start from.*--init"),
        ({"encoder_lr_scale": 0.5}, "encoder_lr_scale is about weights"),
        ({"allow_partial": True}, "allow_partial is about weights"),
        ({"steps": 3, "epochs": 1}, "epochs and steps are both given"),
        ({"batch_size": 0}, "batch_size=0: must be above 0"),
        ({"budget": "soon"}, "budget 'soon'"),
    ],
)
def test_what_cannot_be_meant(options, message):
    with pytest.raises(ValueError, match=message):
        Request("images", **options)


def test_auto_and_none_leave_it_open():
    request = Request("images", image_size=None, init="run", head_warmup=0.0)
    assert (chosen(request.image_size), chosen(request.batch_size)) == (None, None)
    assert request.init_options() == {"head_warmup": 0.0}
    assert request.seconds == 1800
    assert Request("images", steps=5).seconds is None
