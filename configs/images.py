"""Any folder of images, or any image dataset of TFDS by its name, such as cifar10.

What:      a UNet teacher, then students of 1 to 16 steps.
Commands:  multistep-cm train --config=configs/images.py:folder=DIR,size=64 --workdir=T
           multistep-cm train --workdir=S --config.teacher.workdir=T \\
               --config=configs/images.py:folder=DIR,size=64,stage=cd,steps=4
           multistep-cm train --config=configs/images.py:name=cifar10 --workdir=T
Data:      DIR holds image files, or a folder of them for each class, or both of that in
           train/ and test/; see docs/data.md. What TFDS has must be prepared in
           ArrayRecord format; where it is not, the error says the command.
           Its keys: --config.data.image_key, --config.data.label_key (empty: none).
Hardware:  one GPU or more for 32 pixels and above.
Expected:  not measured by us; the paper has ImageNet only. The discretisation is the
           paper's, 64 to 1280 steps over half of the run.
"""

from ml_collections import ConfigDict

from multistep_cm.config import default_config, parse_arguments
from multistep_cm.data.folders import count_classes
from multistep_cm.errors import UserError
from multistep_cm.stages import apply_stage


def get_config(arguments: str = "") -> ConfigDict:
    """`folder` or `name`, `size` in pixels, `channels`, `classes`, `stage`, `steps`.

    `classes` is 0 for a model without; -1 counts a folder's class folders, and is the
    10 of cifar10 elsewhere. The stages are those of `multistep_cm/stages.py`.
    """
    chosen = parse_arguments(
        arguments,
        folder="",
        name="cifar10",
        size=32,
        channels=3,
        classes=-1,
        stage="teacher",
        steps=0,
    )
    stage, size = chosen["stage"], chosen["size"]
    folder, classes = chosen["folder"], chosen["classes"]
    config = default_config()
    config.data.name = chosen["name"]
    if folder:
        if chosen["name"] != "cifar10":
            raise UserError("config arguments folder and name are given, expected one")
        config.data.name = "folder"
        config.data.directory = folder
    if classes == -1:
        classes = count_classes(folder) if folder else 10
    config.data.image_size = size
    config.data.channels = chosen["channels"]
    config.data.num_classes = classes
    if not classes:
        config.data.label_key = ""
    config.data.flip = True
    config.data.cache = False
    config.data.num_threads = 8
    config.diffusion.noise_low = 32.0
    config.diffusion.noise_high = float(max(32, size))

    config.model.name = "unet"
    config.model.channels = (128, 256, 256)
    config.model.blocks = (3, 3, 3)
    config.model.attention_resolutions = (size // 2, size // 4)
    config.model.head_dim = 64
    config.model.condition_width = 512
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"

    training = config.training
    training.num_steps = 200_000
    training.batch_size = 512
    training.warmup_steps = 5000
    training.ema_decay = 0.9999
    training.log_every = 100
    config.checkpoint.every_steps = 5000
    config.sampling.num_steps = 256
    config.sampling.every_steps = 10_000
    training.learning_rate = 2e-4
    config.consistency.anneal_steps = training.num_steps // 2
    apply_stage(config, stage, chosen["steps"], default_steps=4)
    if stage != "teacher":
        training.learning_rate = 1e-4
        training.label_dropout = 0.0
    return config
