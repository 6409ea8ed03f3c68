"""The nearest of a row of similarities: ties go to the lower index wherever they stand."""

import torch

from omma.ops.nearest import top


def test_ties_within_and_at_the_edge_go_to_the_lower_index():
    generator = torch.Generator().manual_seed(0)
    similarity = torch.randint(0, 6, (64, 300), generator=generator).float()
    near, index = top(similarity, 40)
    full, order = similarity.sort(dim=1, descending=True, stable=True)
    assert torch.equal(near, full[:, :40])
    assert torch.equal(index, order[:, :40])
