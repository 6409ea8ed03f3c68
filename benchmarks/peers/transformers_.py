"""transformers' MAE: ViTMAEForPreTraining with its own loss, in a plain loop."""

import torch
from common import Contender, contender_name
from setting import Setting

from peers import stepper


def mae(s: Setting, bf16: bool, attention: str) -> Contender:
    """attention: "sdpa", the default, or "eager"."""
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    (images,), size, decoder = s.crops(), s.shape, s.decoder_
    config = ViTMAEConfig(
        hidden_size=size.dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=int(size.ratio * size.dim),
        image_size=s.image_size,
        patch_size=s.patch,
        mask_ratio=0.75,
        norm_pix_loss=True,
        decoder_hidden_size=decoder.dim,
        decoder_num_hidden_layers=decoder.depth,
        decoder_num_attention_heads=decoder.heads,
        decoder_intermediate_size=4 * decoder.dim,
        attn_implementation=attention,
    )
    model = ViTMAEForPreTraining(config).train().to(s.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=s.lr)
    step = stepper(s, bf16, lambda: model(pixel_values=images).loss, optimizer)
    return Contender(contender_name("transformers", bf16, attention), step, s.batch, bf16=bf16)
