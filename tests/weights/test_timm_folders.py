"""Folders that timm writes are built as timm built them, with all arguments; hostile ones are refused."""

import json

import pytest
import safetensors.torch
import torch

import omma
from omma import weights

timm = pytest.importorskip("timm", reason="timm (dev group) is not installed")

NETWORKS = {  # name, arguments, image size
    "plain": ("test_convnext", {}),
    "other classes": ("test_efficientnet", {"num_classes": 7}),
    "without classifier": ("test_byobnet", {"num_classes": 0}),
    "one channel": ("test_resnet", {"in_chans": 1}),
    "other pooling": ("test_convnext", {"global_pool": "max"}),
    "other activation": ("test_resnet", {"act_layer": "silu"}),
    "other stride": ("test_resnet", {"output_stride": 16}),
    "registers": ("test_vit", {"reg_tokens": 4, "img_size": 64}),
    "other sizes": ("test_vit2", {"embed_dim": 48, "num_heads": 3, "depth": 2}),
    "EVA": ("eva02_tiny_patch14_224", {"img_size": 28, "depth": 1}),
    "a narrow Swin, whose windows timm shrinks": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 48, "depths": (1, 1, 1, 1)},
    ),
    "a head before the classifier": ("mobilenetv3_small_050", {}),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_folder_of_save_for_hf(tmp_path, kind):
    name, arguments = NETWORKS[kind]
    torch.manual_seed(0)
    network = timm.create_model(name, **arguments).eval()
    timm.models.save_for_hf(network, tmp_path / "theirs", safe_serialization=True)
    assert json.loads((tmp_path / "theirs" / "config.json").read_text())["model_args"]
    model = omma.load(tmp_path / "theirs")
    channels, size = arguments.get("in_chans", 3), model.preprocess.size
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        theirs, ours = network.forward_features(x), model(x)
        if theirs.ndim == 4:
            theirs = theirs if theirs.shape[1] == model.encoder.dim else theirs.permute(0, 3, 1, 2)
            theirs = theirs.flatten(2).transpose(1, 2)
        theirs = theirs[:, -ours.patches.shape[1] :]
        torch.testing.assert_close(ours.patches, theirs, rtol=1e-3, atol=1e-4)
        if kind == "other pooling":
            torch.testing.assert_close(
                ours.pooled, network.forward_head(network.forward_features(x), pre_logits=True)
            )
    weights.save(tmp_path / "ours", model.encoder, model.preprocess)  # and omma's own folder builds it again
    torch.testing.assert_close(omma.load(tmp_path / "ours")(x).patches, ours.patches)


HOSTILE = {
    "a file to read": ({"checkpoint_path": "/etc/passwd"}, "checkpoint_path"),
    "weights to fetch": ({"pretrained_cfg_overlay": {"url": "http://127.0.0.1"}}, "pretrained_cfg_overlay"),
    "a billion layers": ({"depth": 10**9}, "depth"),
    "many layers": ({"depths": [900, 900]}, "depths"),
    "a billion wide": ({"embed_dim": 10**9}, "embed_dim"),
    "wide beyond the file": ({"embed_dim": 11520}, "does not fit"),
    "nested": ({"embed_dim": {"a": 1}}, "embed_dim"),
    "unknown": ({"colour": "red"}, "colour"),
    "an unknown layer": ({"norm_layer": "os.system"}, "made"),
    "channels": ({"in_chans": "many"}, "in_chans"),
    "a size": ({"img_size": [64, 32]}, "img_size"),
    "no arguments": ([1, 2], "malformed"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_arguments_are_refused_in_a_line(tmp_path, kind):
    arguments, words = HOSTILE[kind]
    network = timm.create_model("test_vit3")  # omma has no network of this kind
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "test_vit3",
        "model_args": arguments,
        "pretrained_cfg": {"input_size": [3, 160, 160]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words) as raised:
        omma.load(tmp_path)
    assert "\n" not in str(raised.value)
