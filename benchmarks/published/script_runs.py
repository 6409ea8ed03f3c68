"""Each published run: its command, and the numbers that its script computes from it (scripts.py)."""

import argparse
import contextlib
import math
from pathlib import Path
from types import SimpleNamespace as Space
from typing import Any

import numpy as np
import timm.scheduler
from published import scripts
from published.scripts import (
    IMAGES,
    LAION,
    Script,
    Tree,
    after,
    arguments,
    assigned,
    merged,
    passed,
    rates,
    read,
    sgd,
    taken,
)  # fmt: skip


def dino(
    clone: Path, words: list[str], batch: int, epochs: int, main: str = "main_dino.py"
) -> dict[str, Any]:
    utils, file = clone / "utils.py", clone / main
    flag, cosine = taken(utils, "bool_flag", "cosine_scheduler", argparse=argparse)
    known = {"utils": Space(bool_flag=flag, cosine_scheduler=cosine, get_world_size=lambda: 1)}
    args = arguments(file, [*words, f"--epochs={epochs}", f"--batch_size_per_gpu={batch}"], **known)
    known |= {"args": args, "data_loader": range(IMAGES // batch)}
    lr, decay, momentum = (assigned(file, f"{name}_schedule", **known) for name in ("lr", "wd", "momentum"))
    temperature = assigned(
        file, "self.teacher_temp_schedule", nepochs=epochs, **{
            name: getattr(args, name) for name in
            ("warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs")
        },
    )  # fmt: skip
    per = IMAGES // batch
    return rates(lr.__getitem__, epochs * per, args.warmup_epochs * per, per) | {
        "weight decay: first, last": (decay[0], decay[-1]),
        "betas": (0.9, 0.999),  # PyTorch's, since the script gives none
        "clip": (args.clip_grad, "tensor"),
        "teacher's momentum: first": momentum[0],
        **{f"temperature: epoch {e}": temperature[e] for e in (0, 10, 29, 100)},
        "epochs of a frozen last layer": args.freeze_last_layer,
        "stochastic depth": args.drop_path_rate if main == "main_dino.py" else args.drop_path,
        "prototypes": args.out_dim,
        "prototypes' lengths are learned": not args.norm_last_layer,
        "crops: global": tuple(args.global_crops_scale),
        "crops: local": (args.local_crops_number, *args.local_crops_scale),
    }


def ibot(clone: Path, words: list[str], batch: int, epochs: int) -> dict[str, Any]:
    return dino(clone, words, batch, epochs, "main_ibot.py")


def dinov2(clone: Path, words: list[str], batch: int, epochs: int) -> dict[str, Any]:
    """epochs: of 1,250 steps."""
    folder = clone / "dinov2"
    config = merged(Tree(), read(folder / "configs" / "ssl_default_config.yaml"))
    config = merged(config, read(folder / "configs" / "train" / words[0]))
    config.train.batch_size_per_gpu, config.optim.epochs = batch, epochs
    logger = Space(info=lambda *_: None)
    (scale,) = taken(
        folder / "utils" / "config.py", "apply_scaling_rules_to_cfg",
        distributed=Space(get_global_size=lambda: 1), logger=logger,
    )  # fmt: skip
    (cosine,) = taken(folder / "utils" / "utils.py", "CosineScheduler")
    (build,) = taken(folder / "train" / "train.py", "build_schedulers", CosineScheduler=cosine, logger=logger)
    lr, decay, momentum, temperature, last = build(scale(config))
    per = config.train.OFFICIAL_EPOCH_LENGTH
    o, student, crops = config.optim, config.student, config.crops
    return rates(lr.__getitem__, epochs * per, o.warmup_epochs * per, per) | {
        "weight decay: first, last": (decay[0], decay.schedule[-1]),
        "betas": (o.adamw_beta1, o.adamw_beta2),
        "clip": (o.clip_grad, "part"),
        "teacher's momentum: first": momentum[0],
        **{f"temperature: epoch {e}": temperature[e * per] for e in (0, 10, 29, 80)},
        "epochs of a frozen last layer": int(np.argmax(last.schedule > 0)) // per,
        "stochastic depth": student.drop_path_rate,
        "prototypes": config.dino.head_n_prototypes,
        "bottleneck: images": config.dino.head_bottleneck_dim,
        "bottleneck: patches": config.ibot.head_bottleneck_dim if config.ibot.separate_head else None,
        "network": student.ffn_layer.removesuffix("fused"),
        "rates by layer": o.layerwise_decay,
        "rate of the patch embedding": o.patch_embed_lr_mult,
        "centring": {"centering": "mean", "sinkhorn_knopp": "sinkhorn"}[config.train.centering],
        "KoLeo": config.dino.koleo_loss_weight,
        "crops: global": tuple(crops.global_crops_scale),
        "crops: local": (crops.local_crops_number, *crops.local_crops_scale),
    }


def mae(clone: Path, words: list[str], batch: int, epochs: int) -> dict[str, Any]:
    file = clone / "main_pretrain.py"
    words = [*words, f"--epochs={epochs}", f"--batch_size={batch}"]
    args = arguments(file, words)
    args.lr = assigned(file, "args.lr", args=args, eff_batch_size=args.batch_size * args.accum_iter)
    (adjust,) = taken(clone / "util" / "lr_sched.py", "adjust_learning_rate")
    optimizer, per = sgd(1.0), IMAGES // batch
    network = "MaskedAutoencoderViT"
    rate = rates(lambda s: adjust(optimizer, s / per, args), epochs * per, args.warmup_epochs * per, per)
    return rate | {
        "weight decay: first, last": (args.weight_decay, args.weight_decay),
        "betas": passed(file, "torch.optim.AdamW", "betas"),
        "clip": (None, "all"),
        "stochastic depth": 0.0,
        "mask": args.mask_ratio,
        "normalised pixels": args.norm_pix_loss,
        **{
            f"decoder: {name}": passed(
                clone / "models_mae.py", network, f"decoder_{of}", "mae_vit_base_patch16_dec512d8b"
            )
            for name, of in (("width", "embed_dim"), ("depth", "depth"), ("heads", "num_heads"))
        },
        "crops: global": passed(file, "transforms.RandomResizedCrop", "scale"),
    }


def moco(clone: Path, words: list[str], batch: int, epochs: int) -> dict[str, Any]:
    file = clone / "main_moco.py"
    args = arguments(file, [*words, "DIR", f"--epochs={epochs}", f"--batch-size={batch}"], model_names=())
    args.lr = assigned(file, "args.lr", args=args)
    adjust, momentum = taken(file, "adjust_learning_rate", "adjust_moco_momentum")
    optimizer, per = sgd(1.0), IMAGES // batch
    arch = passed(clone / "vits.py", "VisionTransformerMoCo", "num_heads", args.arch)
    rate = rates(lambda s: adjust(optimizer, s / per, args), epochs * per, args.warmup_epochs * per, per)
    return rate | {
        "weight decay: first, last": (args.weight_decay, args.weight_decay),
        "betas": (0.9, 0.999),  # PyTorch's, since the script gives none
        "clip": (None, "all"),
        "teacher's momentum: first": momentum(0.0, args),
        "temperature": args.moco_t,
        "stochastic depth": 0.0,
        "head: hidden, out": (args.moco_mlp_dim, args.moco_dim),
        "heads of attention": arch,
        "patch embedding is frozen": args.stop_grad_conv1,
        "crops: global": passed(file, "transforms.RandomResizedCrop", "scale", args=args),
    }


def simmim(clone: Path, words: list[str], batch: int, epochs: int) -> dict[str, Any]:
    space: dict[str, Any] = {"CN": Tree}
    lines = [x for x in (clone / "config.py").read_text().splitlines() if x.startswith("_C")]
    exec("\n".join(lines), space)
    config = merged(space["_C"], read(clone / words[0]))
    config.DATA.BATCH_SIZE, config.TRAIN.EPOCHS = batch, epochs
    main = clone / "main_simmim.py"
    known = {"config": config, "dist": Space(get_world_size=lambda: 1)}
    scaled = {
        upper: assigned(main, f"linear_scaled_{lower}", **known)
        for upper, lower in (("BASE_LR", "lr"), ("WARMUP_LR", "warmup_lr"), ("MIN_LR", "min_lr"))
    }
    config.TRAIN.update(scaled)
    build, multistep = taken(
        clone / "lr_scheduler.py", "build_scheduler", "MultiStepLRScheduler", LinearLRScheduler=None,
        **scripts.TimmModules()._asdict(),
    )  # fmt: skip
    build.__globals__["MultiStepLRScheduler"] = multistep
    optimizer, per = sgd(config.TRAIN.BASE_LR), IMAGES // batch
    rate = after(build(config, optimizer, per), optimizer, "step_update")
    swin = config.MODEL.TYPE == "swin"
    return rates(rate, epochs * per, config.TRAIN.WARMUP_EPOCHS * per, per) | {
        "weight decay: first, last": (config.TRAIN.WEIGHT_DECAY,) * 2,
        "betas": tuple(config.TRAIN.OPTIMIZER.BETAS),
        "clip": (config.TRAIN.CLIP_GRAD, "all"),
        "stochastic depth": config.MODEL.DROP_PATH_RATE,
        "mask": config.DATA.MASK_RATIO,
        "mask: pixels of a unit": config.DATA.MASK_PATCH_SIZE,
        "network": config.MODEL.SWIN.WINDOW_SIZE if swin else bool(config.MODEL.VIT.USE_SHARED_RPB),
        "crops: global": passed(clone / "data" / "data_simmim.py", "T.RandomResizedCrop", "scale"),
    }


def beit(
    clone: Path, words: list[str], batch: int, epochs: int, main: str = "run_beit_pretraining.py"
) -> dict[str, Any]:
    file = clone / main
    args = arguments(file, [*words, f"--epochs={epochs}", f"--batch_size={batch}"])
    if args.__dict__.get("weight_decay_end") is None:
        args.weight_decay_end = args.weight_decay
    (cosine,) = taken(clone / "utils.py", "cosine_scheduler")
    known = {
        "utils": Space(cosine_scheduler=cosine),
        "args": args,
        "num_training_steps_per_epoch": IMAGES // batch,
    }
    lr, decay = (assigned(file, f"{name}_schedule_values", **known) for name in ("lr", "wd"))
    scale = getattr(args, "crop_scale", None) or (0.08, 1.0)
    per = IMAGES // batch
    return rates(lr.__getitem__, epochs * per, args.warmup_epochs * per, per) | {
        "weight decay: first, last": (decay[0], decay[-1]),
        "betas": tuple(args.opt_betas) if args.opt_betas else (0.9, 0.999),
        "clip": (args.clip_grad, "all"),
        "stochastic depth": args.drop_path,
        "mask": args.num_mask_patches / (args.input_size // (16 if main.startswith("run_beit") else 14)) ** 2,
        "LayerScale": args.layer_scale_init_value,
        "crops: global": tuple(scale),
    }


def eva(clone: Path, words: list[str], batch: int, epochs: int) -> dict[str, Any]:
    return beit(clone / "eva", words, batch, epochs, "run_eva_pretraining.py")


def simclr(clone: Path, words: list[str], batch: int, epochs: int) -> dict[str, Any]:
    words = [*words, f"--train_batch_size={batch}", f"--train_epochs={epochs}"]
    flags = scripts.flags(clone / "tf2" / "run.py", words)

    def decay(lr: float, steps: int) -> Any:
        return lambda s: lr * 0.5 * (1 + math.cos(math.pi * min(max(s, 0), steps) / steps))

    keras = Space(
        experimental=Space(CosineDecay=decay),
        optimizers=Space(schedules=Space(LearningRateSchedule=object)),
    )
    tf = Space(
        name_scope=lambda _: contextlib.nullcontext(), where=lambda test, a, b: a if test else b, keras=keras
    )
    file = clone / "tf2" / "model.py"
    schedule, steps = taken(file, "WarmUpAndCosineDecay", "get_train_steps", tf=tf, FLAGS=flags)
    rate = schedule(flags.learning_rate, IMAGES)
    warmup = round(flags.warmup_epochs * IMAGES // batch)
    return rates(rate, steps(IMAGES), warmup, IMAGES // batch) | {
        "weight decay: first, last": (flags.weight_decay,) * 2,
        "clip": (None, "all"),
        "momentum": flags.momentum,
        "optimizer": flags.optimizer,
        "temperature": flags.temperature,
        "stochastic depth": 0.0,
        "head: layers, out": (flags.num_proj_layers, flags.proj_out_dim),
        "colour": flags.color_jitter_strength,
        "crops: global": passed(
            clone / "tf2" / "data_util.py", "distorted_bounding_box_crop", "area_range", "crop_and_resize"
        ),
    }


def deit(clone: Path, words: list[str], batch: int, epochs: int) -> dict[str, Any]:
    file = clone / "main.py"
    args = arguments(file, [*words, f"--epochs={epochs}", f"--batch-size={batch}"])
    args.lr = assigned(file, "linear_scaled_lr", args=args, utils=Space(get_world_size=lambda: 1))
    optimizer, per = sgd(args.lr), IMAGES // batch
    scheduler, _ = timm.scheduler.create_scheduler(args, optimizer)
    rate = after(scheduler, optimizer, "step")
    return rates(lambda s: rate(s // per), epochs * per, args.warmup_epochs * per, per) | {
        "weight decay: first, last": (args.weight_decay,) * 2,
        "betas": tuple(args.opt_betas) if args.opt_betas else (0.9, 0.999),
        "clip": (args.clip_grad, "all"),
        "stochastic depth": args.drop_path,
        "smoothing, mixup, cutmix": (args.smoothing, args.mixup, args.cutmix),
        "erasing": args.reprob,
        "views of each image": 3 if args.repeated_aug else 1,
    }


def clip(clone: Path, words: list[str], batch: int, epochs: int) -> dict[str, Any]:
    folder = clone / "src" / "open_clip_train"
    (defaults,) = taken(folder / "params.py", "get_default_params")
    args = arguments(
        folder / "params.py", [*words, f"--epochs={epochs}", f"--batch-size={batch}"], ParseKwargs="store"
    )
    for name, value in defaults(args.model).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    _, _, cosine = taken(folder / "scheduler.py", "assign_learning_rate", "_warmup_lr", "cosine_lr")
    per = LAION // batch
    rate = cosine(sgd(1.0), args.lr, args.warmup, epochs * per)
    return rates(rate, epochs * per, args.warmup, per) | {
        "weight decay: first, last": (args.wd, args.wd),
        "betas": (args.beta1, args.beta2),
        "clip": (args.grad_clip_norm, "all"),
        "stochastic depth": 0.0,
    }


README = "README.md"
SCRIPTS = [
    Script("DINO ViT-S/16", "dino", "vit-s/16", 224, {}, "facebookresearch/dino",
           "--arch vit_small --teacher_temp 0.07 --warmup_teacher_temp_epochs 30 --norm_last_layer false",
           f"{README}, Boosting DINO performance", 1024, 300, dino),
    Script("iBOT ViT-S/16", "ibot", "vit-s/16", 224, {}, "bytedance/ibot",
           "--teacher_temp 0.07 --warmup_teacher_temp_epochs 30 --norm_last_layer false --shared_head true "
           "--out_dim 8192 --local_crops_number 10 --global_crops_scale 0.25 1 --local_crops_scale 0.05 0.25 "
           "--pred_ratio 0 0.3 --pred_ratio_var 0 0.2", README, 1024, 800, ibot),
    Script("DINOv2 ViT-L/14", "dinov2", "dinov2-l/14", 224, {}, "facebookresearch/dinov2", "vitl14.yaml",
           "configs/train, 96 GPUs", 3072, 500, dinov2),
    Script("DINOv2 ViT-L/16, short", "dinov2", "vit-l/16", 224, {"short": True}, "facebookresearch/dinov2",
           "vitl16_short.yaml", "configs/train, 32 GPUs", 2048, 100, dinov2),
    Script("MAE ViT-B/16", "mae", "vit-b/16", 224, {}, "facebookresearch/mae",
           "--norm_pix_loss --mask_ratio 0.75 --warmup_epochs 40 --blr 1.5e-4 --weight_decay 0.05",
           "PRETRAIN.md", 4096, 800, mae),
    *(Script(f"MoCo v3 ViT-{size.upper()}/16", "moco", f"vit-{size}/16", 224, {}, "facebookresearch/moco-v3",
             f"-a vit_{arch} --optimizer=adamw --lr=1.5e-4 --weight-decay=.1 --warmup-epochs=40 "
             "--stop-grad-conv1 --moco-m-cos --moco-t=.2", "CONFIG.md", 4096, 300, moco)
      for size, arch in (("s", "small"), ("b", "base"))),
    Script("SimMIM ViT-B/16", "simmim", "beit-b/16", 224, {}, "microsoft/SimMIM",
           "configs/vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml",
           f"{README}, 16 GPUs of 128", 2048, 800, simmim),
    Script("SimMIM Swin-B", "simmim", "swin-b", 192, {}, "microsoft/SimMIM",
           "configs/swin_base__800ep/simmim_pretrain__swin_base__img192_window6__800ep.yaml",
           f"{README}, 16 GPUs of 128", 2048, 800, simmim),
    Script("BEiT ViT-B/16", "beit", "beit-b/16", 224, {}, "microsoft/unilm",
           "--num_mask_patches 75 --lr 1.5e-3 --warmup_epochs 10 --clip_grad 3.0 --drop_path 0.1 "
           "--layer_scale_init_value 0.1", f"beit/{README}, ImageNet-1k", 2048, 800,
           lambda clone, *others: beit(clone / "beit", *others)),
    Script("SimCLR ResNet-50", "simclr", "timm:resnet50", 224, {}, "google-research/simclr",
           "--temperature=0.1 --learning_rate=0.3 --weight_decay=1e-4",
           f"{README}, at its linear scaling, which is the same at batch 4096", 4096, 100, simclr),
    Script("DeiT-B distilled", "deit", "deit-b/16", 224, {}, "facebookresearch/deit", "",
           "README_deit.md: 16 GPUs, and defaults", 1024, 300, deit),
    Script("EVA-g/14", "eva", "eva-g/14", 224, {}, "baaivision/EVA",
           "--num_mask_patches 105 --layer_scale_init_value 0.0 --lr 1e-3 --opt_betas 0.9 0.98 "
           "--opt_eps 1e-6 --drop_path 0.1 --warmup_epochs 2 --clip_grad 3.0 --weight_decay 0.05",
           "EVA-01/eva/README.md", 4096, 150, lambda clone, *others: eva(clone / "EVA-01", *others)),
    Script("CLIP ViT-B/32", "clip", "vit-b/32", 224, {}, "mlfoundations/open_clip",
           "--model ViT-B-32 --warmup 2000", f"{README}, SLURM", 32_768, 32, clip, LAION),
]  # fmt: skip
