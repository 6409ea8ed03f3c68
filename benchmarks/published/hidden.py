"""MAE, SimMIM and BEiT compared with the published code: add a function here and to ROWS."""

import copy
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.distributed
import torch.nn.functional as F
from published.comparing import (
    IMAGE,
    IMAGES,
    PATCH,
    STEPS,
    Differences,
    Row,
    batch,
    descend,
    double,
    made,
    scatter,
    toy,
    wave,
)
from published.references import References
from torch import nn

from omma.backbones.eva import Eva
from omma.backbones.layers.block import Where
from omma.core.protocols import Clock, Context, Extras, Preprocess
from omma.methods import beit, mae, simmim
from omma.methods.shared.masking import blocks, random_units
from omma.weights import Model


def mae_method(references: References, differences: Differences, normalise: bool) -> None:
    official = references.load("facebookresearch/mae", "models_mae")
    config = mae.Config(decoder_depth=1, decoder_dim=8, decoder_heads=2, normalise_target=normalise)
    method = made(mae, config, positions="sincos")
    theirs = official.MaskedAutoencoderViT(
        IMAGE, PATCH, 3, 16, 2, 2, 8, 1, 2, 4, partial(nn.LayerNorm, eps=1e-6), norm_pix_loss=normalise
    ).double()
    # the published predictor orders a patch row, column, channel; ours channel, row, column
    order = torch.arange(3 * PATCH**2).view(PATCH, PATCH, 3).permute(2, 0, 1).flatten()

    def name_of(ours: str) -> str:
        if ours == "decoder.mask_token":
            return "mask_token"
        ours = ours.removeprefix("encoder.").replace("decoder.predict", "decoder_pred")
        return ours.replace("decoder.", "decoder_")

    twins = dict(theirs.named_parameters())
    pairs = [(name, p, twins[name_of(name)]) for name, p in method.named_parameters() if p.requires_grad]
    assert len(pairs) == sum(p.requires_grad for p in theirs.parameters())
    differences.note("loss", method.encoder.pos_embed, theirs.pos_embed)
    with torch.no_grad():
        for name, p, q in pairs:
            q[order if "predict" in name else slice(None)] = p.double()
    for step in range(STEPS):
        data = batch(step, (1, IMAGE))
        with mock.patch.object(mae, "random_keep", side_effect=mae.random_keep) as drawn:
            ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        keep = mae.random_keep(*drawn.call_args.args)
        noise = torch.ones(IMAGES, (IMAGE // PATCH) ** 2).scatter(1, keep, 0.0)
        with mock.patch.object(torch, "rand", return_value=noise):  # what is small is kept
            loss = theirs(*double(data.views), config.mask_share)[0]
        loss.backward()
        differences.note("loss", ours.loss, loss)
        for name, p, q in pairs:
            differences.note("gradient", p.grad, q.grad[order] if "predict" in name else q.grad)
        descend(method, theirs)


def simmim_method(references: References, differences: Differences) -> None:
    official = references.load("microsoft/SimMIM", "models.simmim")
    method = made(simmim, simmim.Config(unit=8))
    twin = copy.deepcopy(method).double()
    where = Where((IMAGE // PATCH,) * 2, twin.encoder.prefix)

    class Encoder(nn.Module):
        """The modules of omma's network, run by the published code."""

        num_features, in_chans, patch_size = 16, 3, PATCH
        pos_drop, rel_pos_bias = nn.Identity(), None
        forward = official.VisionTransformerForSimMIM.forward

        def __init__(self) -> None:
            super().__init__()
            net: Any = twin.encoder
            self.patch_embed, self.cls_token, self.pos_embed = net.patch_embed, net.cls_token, net.pos_embed
            self.norm, self.mask_token = net.norm, twin.mask_token
            self.blocks = [lambda x, rel_pos_bias, block=block: block(x, where) for block in net.blocks]

    theirs = official.SimMIM(Encoder(), PATCH).double()
    conv = theirs.decoder[0]
    with torch.no_grad():
        conv.weight.copy_(twin.predict.weight[:, :, None, None])
        conv.bias.copy_(twin.predict.bias)
    for step in range(STEPS):
        data = batch(step, (1, IMAGE))
        with mock.patch.object(simmim, "random_units", side_effect=random_units) as drawn:
            ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        mask = random_units(*drawn.call_args.args).unflatten(1, (IMAGE // PATCH,) * 2)
        loss = theirs(*double(data.views), mask.long())
        loss.backward()
        differences.note("loss", ours.loss, loss)
        differences.gradients(method.encoder, twin.encoder)
        differences.note("gradient", method.mask_token.grad, twin.mask_token.grad)
        differences.note("gradient", method.predict.weight.grad, conv.weight.grad[:, :, 0, 0])
        differences.note("gradient", method.predict.bias.grad, conv.bias.grad)
        descend(method, twin, conv)


def beit_method(references: References, differences: Differences) -> None:
    official = references.load("microsoft/unilm", "modeling_pretrain", inside="beit")
    shape: dict[str, Any] = {"patch": PATCH, "image_size": IMAGE, "depth": 2, "heads": 2, "hidden": 64}
    encoder = Eva("toy", dim=16, bias="shared", layer_scale=0.1, pool="mean", **shape)
    as_they_are = Preprocess(
        size=IMAGE, channels=3, low=(0.0,) * 3, high=(1.0,) * 3, mean=(0.0,) * 3, std=(1.0,) * 3
    )
    codes = Extras({"codes.weight": wave(7, 16), "codes.bias": wave(7)})
    given = Context(image_size=IMAGE, model=Model(toy(), as_they_are, extras=codes))
    method = beit.Method(encoder, beit.Config(block_share=4 / 16), given)
    scatter(method)
    theirs = official.VisionTransformerForMaskedImageModeling(
        img_size=IMAGE, patch_size=PATCH, vocab_size=7, embed_dim=16, depth=2, num_heads=2,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), init_values=0.1, use_abs_pos_emb=False,
        use_shared_rel_pos_bias=True,
    ).double()  # fmt: skip
    head = {"mask_token": method.head.mask_token, "lm_head.weight": method.head.predict.weight}
    head["lm_head.bias"] = method.head.predict.bias
    lacking = theirs.load_state_dict({**encoder.state_dict(), **head}, strict=False)
    assert not lacking.unexpected_keys
    assert lacking.missing_keys == ["rel_pos_bias.relative_position_index"]
    for step in range(STEPS):
        data = batch(step, (1, IMAGE))
        ours = method(data, Clock(step, STEPS, 0.0))
        ours.loss.backward()
        grid = (IMAGE // PATCH,) * 2
        mask = blocks(data.key, grid, method.config.mask_share, method.config.block_share)
        labels = method.tokenizer(data.views[0][:, 0], grid)[mask].argmax(-1)
        loss = F.cross_entropy(theirs(*double(data.views), mask), labels)
        loss.backward()
        differences.note("loss", ours.loss, loss)
        differences.gradients(method.encoder, theirs)
        differences.note("gradient", method.head.mask_token.grad, theirs.mask_token.grad)
        differences.note("gradient", method.head.predict.weight.grad, theirs.lm_head.weight.grad)
        differences.note("gradient", method.head.predict.bias.grad, theirs.lm_head.bias.grad)
        descend(method, theirs)


ROWS = [
    Row(
        "mae", "MAE whole: weights and mask given, raw pixels", "facebookresearch/mae",
        "MaskedAutoencoderViT", partial(mae_method, normalise=False),
    ),
    Row(
        "mae-normalised", "the same, normalised pixels", "facebookresearch/mae", "MaskedAutoencoderViT",
        partial(mae_method, normalise=True),
    ),
    Row(
        "simmim", "SimMIM whole: weights and mask given", "microsoft/SimMIM",
        "SimMIM, VisionTransformerForSimMIM.forward", simmim_method,
        "it adds 1e-5 to the number of masked pixels; the blocks are ours on both sides",
    ),
    Row(
        "beit", "BEiT whole: weights, mask and codes given", "microsoft/unilm",
        "beit/modeling_pretrain.VisionTransformerForMaskedImageModeling", beit_method,
        "relative positions shared by all layers",
    ),
]  # fmt: skip
