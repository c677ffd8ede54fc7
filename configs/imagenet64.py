"""ImageNet at 64 pixels: the paper's U-ViT, small (394M) and large (1.23B).

What:      class-conditional diffusion teacher, then CD or CT students of 1 to 16 steps.
Commands:  multistep-cm train --config=configs/imagenet64.py:size=S --workdir=T
           multistep-cm train --config=configs/imagenet64.py:size=S,stage=cd,steps=8 \\
               --workdir=S --config.teacher.workdir=T
Data:      TFDS `imagenet_resized/64x64`: it downloads 13 GiB; its class numbers are not
           those of imagenet2012. Or data=imagenet2012: put ILSVRC2012_img_train.tar and
           ILSVRC2012_img_val.tar of image-net.org (144 GiB) into TFDS's folder for
           manual downloads; images are then cropped to the centre and reduced by area
           as they are read. TFDS needs TensorFlow to prepare either as ArrayRecord;
           where it is not, the error says the command. How long that takes was not
           measured: writing alone 0.3 to 0.4 hours for the latter, an estimate of
           `python -m benchmarks.reading`, shuffling 144 GiB on disk not counted.
           Or data=folder: the unpacked images, train/CLASS/*.JPEG and val/CLASS/*.JPEG,
           in --config.data.directory; nothing to prepare.
Hardware:  the paper: 64 TPU v5e for S (CT 2.7, CD 2.5 steps/s), 256 for L (2.9, 2.5).
Expected:  the paper's FID at 1/2/4/8/16 steps, not measured by us. S: CT
           7.2/2.7/1.8/1.5/1.5, CD 4.3/2.0/1.7/1.6/1.5; L: CT 6.4/2.3/1.6/1.5/1.6, CD
           3.2/1.9/1.6/1.4/1.4; diffusion with 512 aDDIM steps 1.5 (S), 1.4 (L).
Ours:      optimizer, learning rate, EMA and the teacher's length; the paper does not
           say them, here they are those of open configs of the same group.
"""

from ml_collections import ConfigDict

from multistep_cm.config import default_config, parse_arguments
from multistep_cm.errors import UserError
from multistep_cm.stages import apply_stage

SIZES = ("S", "L")


def get_config(arguments: str = "") -> ConfigDict:
    """`size=S|L`, `stage` of `multistep_cm/stages.py`, `steps`, `data.name`."""
    chosen = parse_arguments(
        arguments, size="S", stage="teacher", steps=0, data="imagenet_resized/64x64"
    )
    size, stage = chosen["size"], chosen["stage"]
    if size not in SIZES:
        raise UserError(f"config argument size is {size!r}, expected: S, L")
    config = default_config()
    config.data.name = chosen["data"]
    config.data.evaluation_split = "validation"
    config.data.image_size = 64
    config.data.channels = 3
    config.data.num_classes = 1000
    config.data.flip = True
    config.data.cache = False
    config.data.num_threads = 32
    config.diffusion.noise_low = 32.0
    config.diffusion.noise_high = 64.0

    model = config.model
    model.name = "uvit"
    model.channels = (256, 512, 1024) if size == "S" else (512, 1024, 2048)
    model.blocks = (3, 3, 16)
    model.attention_resolutions = (32, 16)
    model.head_dim = 128
    model.condition_width = 1024
    model.dropout = 0.2 if size == "S" else 0.1
    model.dropout_resolutions = (16,) if size == "S" else (32, 16)
    model.dtype = "bfloat16"
    model.remat = "partial"
    model.unrolled_resolutions = (64, 32)

    training = config.training
    training.num_steps = 1_000_000
    training.batch_size = 2048
    training.learning_rate = 1e-4
    training.warmup_steps = 10_000
    training.decay = "constant"
    training.ema_decay = 0.9999
    training.log_every = 100
    config.checkpoint.every_steps = 5000
    config.sampling.method = "addim"
    config.sampling.num_steps = 512
    config.evaluation.num_images = 50_000
    # Parameters, average and Adam's moments over all chips; the batch too.
    config.mesh.data = 1
    config.mesh.fsdp = -1
    apply_stage(config, stage, chosen["steps"], default_steps=8)
    if stage != "teacher":
        training.num_steps = 200_000
        training.learning_rate = 5e-5
        training.label_dropout = 0.0
    return config
