"""Text to image at 512 pixels: the paper's U-ViT over precomputed embeddings.

What:      a diffusion teacher of captions, guidance distilled into one call, and CD
           students of 4, 8 and 16 steps from the guided teacher.
Commands:  multistep-cm train --config=configs/text_to_image.py:data=NAME --workdir=T
           multistep-cm train --workdir=G --config.teacher.workdir=T \\
               --config=configs/text_to_image.py:data=NAME,stage=guidance \\
               --config.consistency.guidance_scale=0.5
           multistep-cm train --workdir=S --config.teacher.workdir=T \\
               --config=configs/text_to_image.py:data=NAME,stage=cd,steps=8 \\
               --config.consistency.guidance_scale=0.5
Data:      a TFDS dataset in ArrayRecord with RGB images, embeddings of captions, float
           [77, 768] in `embedding`, and their mask, bool [77] in `embedding_mask`; see
           docs/text.md. Another length or width: data.text_length and data.text_width.
Hardware:  the paper: 256 TPU v5e, 0.71 steps/s at a batch of 2048.
Expected:  the paper's FID (30k) at guidance 0.5: teacher with 256 steps 7.9, guidance-
           distilled 8.2, CD 8.7/8.1/7.9 at 4/8/16 steps; at guidance 3: 12.7, 13.9,
           12.4/13.9/14.4. Not measured by us, and not on data that is public.
Ours:      text encoder, attention to captions, condition width, number of pools of
           the multiscale loss, optimizer, learning rate, EMA and the teacher's length;
           the paper does not say them. 5.08 billion parameters come of that.
"""

from ml_collections import ConfigDict

from multistep_cm.config import default_config, parse_arguments
from multistep_cm.stages import apply_stage


def get_config(arguments: str = "") -> ConfigDict:
    """`data` the name of a dataset, `stage` of `multistep_cm/stages.py`, `steps`."""
    chosen = parse_arguments(arguments, data="captioned", stage="teacher", steps=0)
    stage = chosen["stage"]
    config = default_config()
    data = config.data
    data.name = chosen["data"]
    data.evaluation_split = "validation"
    data.image_size = 512
    data.channels = 3
    data.label_key = ""
    data.num_classes = 0
    data.text = "precomputed"
    data.text_key = "embedding"
    data.text_mask_key = "embedding_mask"
    data.text_length = 77
    data.text_width = 768
    data.cache = False
    data.num_threads = 32
    config.diffusion.noise_low = 32.0
    config.diffusion.noise_high = 512.0

    model = config.model
    model.name = "uvit"
    model.channels = (128, 256, 1024, 2048, 4096)
    model.blocks = (3, 3, 3, 3, 16)
    model.attention_resolutions = (64, 32)
    model.head_dim = 128
    model.condition_width = 1024
    model.text_width = 1024
    model.dropout = 0.1
    model.dropout_resolutions = (64, 32)
    model.dtype = "bfloat16"
    model.remat = "full"

    training = config.training
    training.num_steps = 500_000
    training.batch_size = 2048
    training.accumulation = 4
    training.learning_rate = 1e-4
    training.warmup_steps = 10_000
    training.decay = "constant"
    training.ema_decay = 0.9999
    training.log_every = 100
    config.checkpoint.every_steps = 5000
    config.sampling.num_steps = 256
    config.evaluation.num_images = 30_000
    consistency = config.consistency
    consistency.teacher_steps_start = 256.0
    consistency.teacher_steps_end = 256.0
    consistency.anneal_steps = 0
    consistency.huber_epsilon = 1.0
    consistency.multiscale = 4
    # Parameters, average and Adam's moments over all chips; the batch too.
    config.mesh.data = 1
    config.mesh.fsdp = -1
    apply_stage(config, stage, chosen["steps"], default_steps=8)
    if stage != "teacher":
        training.num_steps = 30_000
        training.learning_rate = 5e-5
        training.warmup_steps = 1000
        training.caption_dropout = 0.0
    return config
