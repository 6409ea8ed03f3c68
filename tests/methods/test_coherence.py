"""Coherence: frames of other sequences are negatives, those of the same one are not."""

import numpy as np
import pytest
import torch

from omma import backbones
from omma.core.protocols import Batch, Clock, Context, Key, Tracks
from omma.losses import contrastive
from omma.methods import coherence

SEQUENCE = np.array([0, 0, 1, 1, 2])


def method(negatives="others", sequence=SEQUENCE):
    torch.manual_seed(0)
    encoder = backbones.build(name="vit-n/4", image_size=8, depth=1, dim=16, heads=2, hidden=16)
    config = coherence.Config(hidden=16, out=8, negatives=negatives)
    tracks = Tracks(sequence, np.arange(len(sequence), dtype=np.float64))
    return coherence.Method(encoder, config, Context(image_size=8, images=len(sequence), tracks=tracks))


def batch(rows):
    g = torch.Generator().manual_seed(1)
    rows = np.array(rows)
    views = torch.randn(5, 2, 3, 8, 8, generator=g)[rows]
    return Batch((views,), Key(0, np.zeros(len(rows), np.int64), rows))


def test_the_mask_is_of_the_images_that_the_key_names():
    net = method().eval()
    rows = [0, 2, 1, 4]
    out = net(batch(rows), Clock(0, 10, 0.0))
    x = batch(rows).views[0]
    z = net.head(net.encoder(torch.cat([x[:, 0], x[:, 1]])).pooled)
    own = torch.tensor([0, 1, 0, 2])
    expected = contrastive.ntxent(z.chunk(2), 0.1, excluded=own[:, None] == own)
    torch.testing.assert_close(out.loss, expected)
    assert float(out.metrics["other_sequences"]) == pytest.approx(10 / 16)
    plain = contrastive.ntxent(z.chunk(2), 0.1)
    assert plain > expected
    torch.testing.assert_close(method("all").eval()(batch(rows), Clock(0, 10, 0.0)).loss, plain)


def test_a_single_sequence_is_refused_with_the_remedy():
    one = np.zeros(5, np.int64)
    with pytest.raises(ValueError, match=r"of a single one: .*--method.negatives all"):
        method(sequence=one)
    method("all", one)


def test_options_and_sequences_are_required():
    with pytest.raises(ValueError, match=r"method.negatives='some': choose 'others', 'all'"):
        coherence.Config(negatives="some")
    with pytest.raises(ValueError, match="least=0 of Frames"):
        coherence.frames(coherence.Config(least=0))
    with pytest.raises(ValueError, match="coherence learns from sequences: give a table"):
        coherence.Method(method().encoder, coherence.Config(), Context(image_size=8))


def test_its_views_are_those_of_simclr_cut_by_themselves():
    config = coherence.small(48, "vitc-15mf").config
    assert [crop.count for crop in coherence.views(config, 48)] == [1]
    frames = coherence.frames(config)
    assert (frames.count, frames.together, frames.order, frames.alone) == (2, False, "any", True)
