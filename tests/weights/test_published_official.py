"""Checkpoints in the layout of the papers' own code, made from timm's networks: equal features."""

import pytest
import torch
from published_files import randomised, renamed, same

from omma.data.batches.preprocess import IMAGENET_MEAN
from omma.ops.positions import sincos_2d
from omma.weights.published import into_model, recognise

timm = pytest.importorskip("timm", reason="timm (dev group) is not installed")

SMALL = {"embed_dim": 192, "num_heads": 3, "img_size": 32, "patch_size": 8, "depth": 2}


def network(name, seed=0, **options):
    return randomised(timm.create_model(name, num_classes=0, **(SMALL | options)), seed)


def zeros(*names):
    return {name: torch.zeros(2) for name in names}


def check(state, theirs, *, unused, name=None, size=32, **arguments):
    """Every parameter is filled, the features are the reference's, and exactly `unused` is not used."""
    encoder, _, report = into_model(state, source="file.pth", **arguments)
    assert report.share == 1
    assert not report.missing
    assert sorted(report.unused) == sorted(unused)
    assert name in (None, encoder.name)
    same(encoder, theirs, size)
    return encoder, report


def sincos_positions(dim, grid, columns_first=True):
    positions = sincos_2d(dim, grid)
    positions = positions if columns_first else positions.roll(dim // 2, 1)
    return torch.cat([torch.zeros(1, dim), positions])[None]


# ---------------------------------------------------------------- ViT
def test_dino_and_ibot():
    theirs = network("vit_tiny_patch16_224")
    heads = zeros("module.head.mlp.0.weight", "module.head.last_layer.weight_g")
    state = renamed(theirs.state_dict(), prefix="module.backbone.") | heads
    encoder, report = check(state, theirs, unused=heads, name="vit/8")
    assert set(report.matched) == encoder.state_dict().keys()
    student = renamed(network("vit_tiny_patch16_224", seed=1).state_dict(), prefix="student.module.")
    teacher = renamed(theirs.state_dict(), prefix="teacher.") | zeros("teacher.masked_embed")
    check(student | teacher, theirs, unused=[*student, "teacher.masked_embed"])


def test_mae():
    theirs = network("vit_tiny_patch16_224")
    with torch.no_grad():
        theirs.pos_embed.copy_(sincos_positions(192, (4, 4)))
    decoder = zeros(
        "mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight"
    )
    encoder, report = check(theirs.state_dict() | decoder, theirs, unused=decoder)
    assert encoder.spec()["positions"] == "sincos"
    assert not encoder.pos_embed.requires_grad
    assert "mask_token, decoder* (3)" in "\n".join(report.lines())
    tuned = network("vit_tiny_patch16_224", global_pool="avg", fc_norm=True)
    check(tuned.state_dict() | zeros("head.weight", "head.bias"), tuned, unused=("head.weight", "head.bias"))


def test_moco_v3():
    theirs = network("vit_small_patch16_224", embed_dim=384, num_heads=12)
    with torch.no_grad():
        theirs.pos_embed.copy_(sincos_positions(384, (4, 4), columns_first=False))
    other = renamed(network("vit_small_patch16_224", 1).state_dict(), prefix="module.momentum_encoder.")
    heads = zeros("module.base_encoder.head.0.weight", "module.predictor.0.weight")
    state = other | renamed(theirs.state_dict(), prefix="module.base_encoder.") | heads
    encoder, report = check(state, theirs, unused=[*other, *heads])
    assert encoder.spec()["heads"] == 12
    assert encoder.spec()["positions"] == "sincos"
    assert any("MoCo" in line for line in report.lines())


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("gated", [False, True])
def test_dinov2(registers, gated):
    size = "giant" if gated else "small"
    theirs = network(f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2")
    state = renamed(
        theirs.state_dict(),
        (r"^reg_token$", "register_tokens"),
        (r"^blocks\.1\.", "blocks.0.1."),  # in chunks, as in training
        (r"^blocks\.0\.(?!1\.)", "blocks.0.0."),
        *([(r"\.mlp\.fc1\.", ".mlp.w12."), (r"\.mlp\.fc2\.", ".mlp.w3.")] if gated else []),
    )
    if registers:  # the class token's position is stored separately
        position = torch.randn(1, 1, 192)
        state["cls_token"] = state["cls_token"] - position
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    state["mask_token"] = torch.zeros(1, 192)
    encoder, _ = check(state, theirs, unused=["mask_token"])
    assert encoder.spec().get("registers", 0) == registers


def test_deit():
    theirs = network("deit_tiny_distilled_patch16_224")
    heads = zeros("head.weight", "head.bias", "head_dist.weight", "head_dist.bias")
    check(theirs.state_dict() | heads, theirs, unused=heads, name="deit/8")
    third = network("deit3_small_patch16_224")
    check(renamed(third.state_dict(), (r"\.ls([12])\.gamma", r".gamma_\1")), third, unused=[])


def test_googles_arrays():
    theirs = network("vit_tiny_patch16_224")
    rules = (
        (r"^blocks\.(\d+)\.", r"Transformer.encoderblock_\1."),
        (r"\.norm1\.", ".LayerNorm_0."),
        (r"\.norm2\.", ".LayerNorm_2."),
        (r"\.attn\.proj\.", ".MultiHeadDotProductAttention_1.out."),
        (r"\.mlp\.fc1\.", ".MlpBlock_3.Dense_0."),
        (r"\.mlp\.fc2\.", ".MlpBlock_3.Dense_1."),
        (r"^norm\.", "Transformer.encoder_norm."),
        (r"^patch_embed\.proj\.", "embedding."),
        (r"^cls_token$", "cls"),
        (r"^pos_embed$", "Transformer.posembed_input.pos_embedding"),
        (r"(norm|Norm_\d)\.weight$", r"\1.scale"),
        (r"\.weight$", ".kernel"),
        (r"\.", "/"),
    )
    state = {}
    for name, x in renamed(theirs.state_dict(), *rules).items():
        if "/attn/qkv/" in name:
            for part, rows in zip(("query", "key", "value"), x.chunk(3), strict=True):
                new = name.replace("attn/qkv", f"MultiHeadDotProductAttention_1/{part}")
                state[new] = rows.T.reshape(192, 3, 64) if rows.ndim > 1 else rows.reshape(3, 64)
        elif name.endswith("out/kernel"):
            state[name] = x.T.reshape(3, 64, 192)
        elif name.endswith("kernel"):
            state[name] = x.permute(2, 3, 1, 0) if x.ndim == 4 else x.T
        else:
            state[name] = x
    head = zeros("head/kernel", "head/bias", "pre_logits/kernel")
    _, report = check(state | head, theirs, unused=head)
    assert "transposed" in "\n".join(report.lines())


# ---------------------------------------------------------------- CLIP
TO_OPEN_CLIP = (
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^patch_embed\.proj\.", "conv1."),
    (r"^norm_pre\.", "ln_pre."),
    (r"^norm\.", "ln_post."),
    (r"^blocks\.", "transformer.resblocks."),
    (r"\.norm([12])\.", r".ln_\1."),
    (r"\.attn\.qkv\.", ".attn.in_proj_"),
    (r"\.attn\.proj\.", ".attn.out_proj."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)


@pytest.mark.parametrize("openai", [True, False])
def test_clip(openai):
    theirs = network(f"vit_base_patch16_clip_{'quickgelu_' if openai else ''}224")
    visual = renamed(theirs.state_dict(), *TO_OPEN_CLIP, prefix="visual.")
    visual["visual.class_embedding"] = visual["visual.class_embedding"].flatten()
    visual["visual.positional_embedding"] = visual["visual.positional_embedding"][0]
    others = zeros(
        "transformer.resblocks.0.ln_1.weight", "visual.proj", "token_embedding.weight", "logit_scale"
    )
    others |= zeros("positional_embedding", "ln_final.weight", "text_projection")
    if openai:
        others |= {"input_resolution": torch.tensor(32), "context_length": torch.tensor(77)}
    encoder, report = check(visual | others, theirs, unused=others, name="vit/8")
    assert encoder.spec().get("mlp", "gelu") == ("quickgelu" if openai else "gelu")
    assert any("assumed" in note for note in report.notes) != openai
    part = {name.removeprefix("visual."): x for name, x in visual.items()}  # FILE:visual
    encoder, _, _ = into_model(part, source="file.pt", other_entries=tuple(others))
    assert encoder.spec().get("mlp", "gelu") == ("quickgelu" if openai else "gelu")
    settings = {"model_cfg": {"quick_gelu": openai, "vision_cfg": {"width": 192}}}
    _, report = check(visual, theirs, unused=[], config=settings)
    assert not any("assumed" in note for note in report.notes)


# ---------------------------------------------------------------- BEiT, EVA-02, DINOv3
@pytest.mark.parametrize("shared", [True, False])
def test_beit_and_simmim(shared):
    bias = {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
    theirs = network("beit_base_patch16_224", global_pool="token", **bias)
    derived = zeros("relative_position_index") if shared else zeros("blocks.0.attn.relative_position_index")
    heads = zeros("mask_token", "lm_head.weight", "cls_pt_layers.0.norm1.weight")
    check(theirs.state_dict() | derived | heads, theirs, unused=[*derived, *heads], name="beit/8")
    simmim = renamed(theirs.state_dict() | derived, prefix="encoder.")
    heads = zeros("encoder.mask_token", "decoder.0.weight", "decoder.0.bias")
    unused = [*renamed(derived, prefix="encoder."), *heads]
    check(simmim | heads, theirs, unused=unused)
    if shared:  # SimMIM's, which normalises as ImageNet's networks, not as BEiT's
        _, prepared, _ = into_model(simmim | heads, source="file.pth")
        assert prepared.mean == IMAGENET_MEAN
    _, prepared, _ = into_model(theirs.state_dict(), source="file.pth")
    assert prepared.mean == (0.5,) * 3


@pytest.mark.parametrize(
    "model", ["eva02_tiny_patch14_224", "eva02_base_patch14_224", "eva02_base_patch16_clip_224"]
)
def test_eva02(model):
    theirs = network(model)
    state = renamed(
        theirs.state_dict(),
        (r"\.attn\.([qv])_proj\.bias$", r".attn.\1_bias"),
        (r"\.attn\.norm\.", ".attn.inner_attn_ln."),
        (r"\.mlp\.norm\.", ".mlp.ffn_ln."),
        (r"\.mlp\.fc1_g\.", ".mlp.w1."),
        (r"\.mlp\.fc1_x\.", ".mlp.w2."),
        (r"\.mlp\.fc1\.", ".mlp.w12."),
        (r"\.mlp\.fc2\.", ".mlp.w3."),
        prefix="visual.",
    )
    unused = zeros(
        "visual.rope.freqs_cos", "visual.blocks.0.attn.rope.freqs_sin", "visual.head.weight", "text.x"
    )
    encoder, _ = check(state | unused, theirs, unused=unused)
    assert hasattr(encoder.blocks[0].mlp, "fc1_g") != ("tiny" in model)


@pytest.mark.parametrize("gated", [False, True])
def test_dinov3(gated):
    theirs = network(f"vit_small_{'plus_' if gated else ''}patch16_dinov3_qkvb", global_pool="token")
    state = renamed(
        theirs.state_dict(),
        (r"^reg_token$", "storage_tokens"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
        (r"\.mlp\.fc1_g\.", ".mlp.w1."),
        (r"\.mlp\.fc1_x\.", ".mlp.w2."),
        *([(r"\.mlp\.fc2\.", ".mlp.w3.")] if gated else []),
    )
    unused = ["mask_token", "rope_embed.periods", "local_cls_norm.weight"]
    for i in range(2):
        q, v = state.pop(f"blocks.{i}.attn.q_bias"), state.pop(f"blocks.{i}.attn.v_bias")
        state[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.full_like(q, 9.0), v])
        state[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([q * 0 + 1, q * 0, q * 0 + 1])
        unused.append(f"blocks.{i}.attn.qkv.bias_mask")
    state |= zeros("mask_token", "local_cls_norm.weight")
    state["rope_embed.periods"] = (100.0 ** (torch.arange(16) / 16)).bfloat16()
    _, report = check(state, theirs, unused=unused, name="dinov3/8", config={"image_size": 32})
    assert "split" in "\n".join(report.lines())
    state["rope_embed.periods"] = 10_000.0 ** (torch.arange(16) / 16)
    with pytest.raises(ValueError, match="base 10000"):
        recognise(state)
    del state["rope_embed.periods"], state["blocks.0.attn.qkv.bias_mask"]
    with pytest.raises(ValueError, match="keys have a bias"):
        recognise(state)


# ---------------------------------------------------------------- Swin, CaiT, ResNet
def test_swin_and_simmim():
    options = {
        "depths": (2, 2, 2),
        "num_heads": (2, 4, 8),
        "img_size": 112,
        "embed_dim": 32,
        "window_size": 7,
    }
    theirs = randomised(timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, **options))
    state = renamed(
        theirs.state_dict(),
        (r"^layers\.1\.downsample", "layers.0.downsample"),
        (r"^layers\.2\.downsample", "layers.1.downsample"),
    )
    index = "layers.0.blocks.0.attn.relative_position_index"
    mask = "layers.0.blocks.1.attn_mask"
    heads = zeros("head.weight", "head.bias", index)
    derived = {mask: torch.zeros(16, 49, 49)}
    encoder, _ = check(state | heads | derived, theirs, unused=[*heads, *derived], size=112)
    assert encoder.image_size == 112
    simmim = renamed(state, prefix="module.encoder.") | zeros(
        "module.encoder.mask_token", "module.decoder.0.weight"
    )
    check(simmim, theirs, unused=["module.encoder.mask_token", "module.decoder.0.weight"], size=112)


def test_cait():
    theirs = randomised(timm.create_model("cait_xxs24_224", num_classes=0, depth=2, img_size=64))
    heads = zeros("module.head.weight", "module.head.bias")
    state = renamed(theirs.state_dict(), prefix="module.") | heads
    encoder, _ = check(state, theirs, unused=heads, size=64)
    assert encoder.spec() == {"name": "cait-xxs24", "image_size": 64, "channels": 3, "depth": 2}


SEQUENCE = (("conv1", "0"), ("bn1", "1"), *((f"layer{i}", str(i + 3)) for i in range(1, 5)))


@pytest.mark.parametrize("form", ["MoCo", "DINO", "torchvision", "lightly"])
def test_resnet(form):
    theirs = randomised(timm.create_model("resnet18", num_classes=0))
    rules = tuple((rf"^{old}\.", f"{new}.") for old, new in SEQUENCE) if form == "lightly" else ()
    prefix = {"MoCo": "module.encoder_q.", "DINO": "module.backbone.", "lightly": "backbone."}.get(form, "")
    state = renamed(theirs.state_dict(), *rules, prefix=prefix)
    heads = zeros(f"{prefix}fc.0.weight", "module.queue")
    if form == "MoCo":
        heads |= renamed(theirs.state_dict(), prefix="module.encoder_k.")
    encoder, _, report = into_model(state | heads, source="file.pth")
    assert encoder.name == "timm:resnet18"
    assert report.share == 1
    assert not report.missing
    assert sorted(report.unused) == sorted(heads)
    same(encoder, theirs, 64, tolerance=1e-3)
