"""How each documented command is run by `test_runs.py`: a table."""

import shlex
from typing import Any

from tests.documents import stand_ins
from tests.documents.measurements import MEASUREMENTS
from tests.documents.row import (
    DRY,
    FID,
    IMAGES,
    MEASURE,
    PHOTOS,
    READER,
    SCENES,
    SMALL,
    WEIGHTS,
    Run,
    keys,
)
from tests.sharding.processes import free_address

SLURM = "launch/slurm.sbatch"


def train(pattern: str, folder: str, *more: str, **fields: Any) -> Run:
    """A training run on the digits that leaves `folder`."""
    leaves = (f"{folder}/config.json", f"{folder}/checkpoints/2")
    return Run(
        f"multistep-cm train {pattern}", (*SMALL, *more), leaves=leaves, **fields
    )


STUDENT = "multistep-cm train --config=configs/digits.py:stage=cd,steps"
FOLDERS = {
    "runs/cd8": ("runs/quickstart/teacher", f"{STUDENT}=8"),
    "runs/cd1": ("runs/quickstart/teacher", f"{STUDENT}=1"),
    "runs/quickstart/teacher": (
        "",
        "multistep-cm train --config=configs/digits.py:stage=teacher",
    ),
    "runs/quickstart/cd4": ("runs/quickstart/teacher", f"{STUDENT}=4"),
}
"""Runs that a reader has from elsewhere: the teacher's folder, and what makes them."""

QUICKSTART = ("runs/quickstart/teacher", "runs/quickstart/cd4")
TEACHER, CD4 = "runs/teacher/config.json", "runs/cd4/config.json"

RUNS = (
    *MEASUREMENTS,
    train("*digits.py:stage=teacher --workdir=runs/teacher", "runs/teacher"),
    train("*stage=cd,steps=4 --workdir=runs/cd4 *", "runs/cd4", needs=(TEACHER,)),
    train("*--workdir=runs/guided4 *", "runs/guided4", needs=(TEACHER,)),
    train("*--workdir=runs/averages *", "runs/averages"),
    train(
        "*--workdir=runs/quickstart/cd16 *",
        "runs/quickstart/cd16",
        needs=("runs/quickstart/teacher",),
    ),
    train(
        "*--workdir=runs/sharded *",
        "runs/sharded",
        as_process=True,
        slow=True,
    ),
    *(
        Run(
            f"multistep-cm train --config=configs/digit_scenes.py:stage={stage}*",
            (*READER, *SCENES),
            needs=needs,
            leaves=(f"runs/text/{name}/config.json", f"runs/text/{name}/checkpoints/2"),
            around=stand_ins.few_scenes,
            slow=True,
        )
        for stage, name, needs in (
            ("teacher", "teacher", ()),
            ("guidance", "guidance", ("runs/text/teacher/config.json",)),
            ("cd,steps=8", "cd8", ("runs/text/teacher/config.json",)),
        )
    ),
    Run(
        "multistep-cm sample --workdir=runs/text/cd8*",
        needs=("runs/text/cd8/config.json",),
        leaves=("runs/text/cd8/samples/sample.png",),
        says="wrote 2 images",
        slow=True,
    ),
    Run(
        "for i in 0 1; do*--workdir=runs/two *",
        replaced=(
            ("localhost:8476", free_address()),
            ("$i &", f"$i {shlex.join(SMALL)} &"),
        ),
        leaves=("runs/two/checkpoints/2",),
        as_process=True,
        slow=True,
    ),
    Run(
        "multistep-cm train *images.py:folder=PATH,size=64 --workdir=runs/mine",
        IMAGES,
        PHOTOS,
        leaves=("runs/mine/config.json",),
    ),
    Run(
        "multistep-cm train *images.py:folder=PATH,size=64 --workdir=runs/wide *",
        IMAGES,
        PHOTOS,
    ),
    Run(
        "multistep-cm train *images.py:folder=PATH,size=64,stage=cd,* *",
        IMAGES,
        PHOTOS,
        needs=("runs/mine/config.json",),
        leaves=("runs/mine4/checkpoints/2",),
        slow=True,
    ),
    Run(
        "multistep-cm train *images.py:name=squares,*",
        IMAGES,
        needs=("datasets/squares",),
        leaves=("runs/squares/checkpoints/2",),
    ),
    Run(
        "*class Squares(*",
        document="docs/data.md",
        leaves=("datasets/squares",),
        as_process=True,
    ),
    Run(
        "multistep-cm train --config=configs/images.py:name=cifar10,*",
        (*IMAGES, *keys(data__directory="mocked")),
        leaves=("runs/cifar10/checkpoints/2",),
        around=stand_ins.mocked_datasets,
    ),
    Run(
        "multistep-cm sample --workdir=runs/cd4 --num_images=100 --output=grid.png",
        needs=(CD4,),
        leaves=("grid.png",),
    ),
    Run(
        "multistep-cm sample *--output=samples.npz",
        MEASURE,
        needs=("runs/cd8",),
        leaves=("samples.npz",),
    ),
    Run(
        "multistep-cm sample --workdir=runs/teacher --guidance_scale=*",
        MEASURE,
        needs=(TEACHER,),
    ),
    Run(
        "multistep-cm evaluate --workdir=runs/cd4",
        MEASURE,
        needs=(CD4,),
        leaves=("runs/cd4/evaluation.json",),
    ),
    Run(
        "multistep-cm evaluate --workdir=runs/teacher --workdir=runs/cd4 *",
        MEASURE,
        needs=(TEACHER, CD4, "runs/cd1"),
        leaves=("runs/cd1/evaluation.json",),
        slow=True,
    ),
    Run(
        "multistep-cm evaluate --workdir=runs/averages *",
        MEASURE,
        needs=("runs/averages/config.json",),
        says="best EMA decay of teacher_ddim, 32 steps",
        slow=True,
    ),
    Run(
        WEIGHTS,
        FID,
        needs=("runs/cd8",),
        says="FID",
        around=stand_ins.small_fid_network,
    ),
    Run(
        "multistep-cm evaluate *--write_reference=references/mine.npz",
        FID,
        needs=("runs/cd8",),
        leaves=("references/mine.npz",),
        around=stand_ins.small_fid_network,
    ),
    Run(
        "multistep-cm evaluate *--reference=references/mine.npz",
        FID,
        needs=(CD4, "references/mine.npz"),
        says="FID",
        around=stand_ins.small_fid_network,
    ),
    Run(
        "multistep-cm report --workdir=runs/cd4",
        needs=(CD4,),
        leaves=("runs/cd4/report.html",),
    ),
    Run(
        "multistep-cm report --workdir runs/quickstart/[*]/ --output=report.html",
        needs=QUICKSTART,
        leaves=("report.html",),
    ),
    Run(
        "multistep-cm report --workdir runs/quickstart/[*]/ --output=all.html",
        needs=QUICKSTART,
        leaves=("all.html",),
        slow=True,
    ),
    Run(
        "multistep-cm sample --workdir=runs/quickstart/cd4 *",
        MEASURE,
        needs=("runs/quickstart/cd4",),
        leaves=("digits.png",),
    ),
    Run(
        "multistep-cm evaluate --workdir=runs/quickstart/teacher *",
        MEASURE,
        needs=("runs/quickstart/teacher",),
        says="teacher_heun",
        slow=True,
    ),
    Run(
        "multistep-cm export --workdir=runs/cd4 --output=exported",
        needs=(CD4,),
        leaves=("exported/sampler.jaxexport",),
    ),
    Run(
        "multistep-cm export --workdir=runs/teacher *--weights=beside *",
        needs=(TEACHER,),
        leaves=("exported_beside/weights.safetensors",),
        slow=True,
    ),
    Run(
        "multistep-cm export *--output=weights.safetensors",
        needs=(CD4,),
        leaves=("weights.safetensors",),
    ),
    Run(
        "multistep-cm plan *--topology=v5e:8x8",
        (*SMALL, *keys(model__dropout_resolutions="()"), "--topology=cpu:2"),
        says="fits: ",
        as_process=True,
        slow=True,
    ),
    Run("export LIBTPU_INIT_ARGS=*", says="--xla_", as_process=True),
    Run("pip install -e '.[[]tpu]'", way="parsed only"),
    Run(
        "bash launch/local_gpu.sh *",
        replaced=(("local_gpu.sh", f"local_gpu.sh {DRY}"),),
        says="-m multistep_cm train --config=configs/imagenet64.py",
        way="dry run",
        as_process=True,
    ),
    Run(
        "sbatch --nodes=2 launch/slurm.sbatch *",
        replaced=(("sbatch --nodes=2 launch/slurm.sbatch", f"bash {SLURM} {DRY}"),),
        says="srun --kill-on-bad-exit=1",
        way="dry run",
        as_process=True,
    ),
    Run(
        "bash launch/tpu_pod.sh *",
        replaced=((" -- ", f" {DRY} -- "),),
        says="gcloud",
        way="dry run",
        as_process=True,
    ),
    Run(
        "bash launch/gke.sh *",
        replaced=((" -- ", f" {DRY} -- "), ("IMAGE", "image"), ("BUCKET", "bucket")),
        says="kubectl",
        way="dry run",
        as_process=True,
    ),
    Run(
        "*def predict(params, *",
        document="docs/network.md",
        says=r"^mean (1\.9[5-9]|2\.0[0-4]), deviation 0\.(0[3-9]|1)",  # points around 2
    ),
    Run(
        "*sampler(np.uint32(0), *",
        document="docs/export.md",
        needs=("exported/sampler.jaxexport",),
        leaves=("samples.npz",),
    ),
    Run(
        "*sampler(weights, *",
        document="docs/export.md",
        needs=("exported_beside/weights.safetensors",),
        leaves=("samples.npz",),
        slow=True,
    ),
    Run(
        "*unflatten_params(*",
        document="docs/export.md",
        needs=("weights.safetensors",),
    ),
    Run("bash launch/test.sh", says="passed", as_process=True, slow=True),
    Run("bash launch/test.sh --slow", says="passed", as_process=True, slow=True),
    Run(
        "bash launch/test.sh tests/diffusion -x",
        says="passed",
        as_process=True,
        slow=True,
    ),
)
