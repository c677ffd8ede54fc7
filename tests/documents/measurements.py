"""The rows of commands that measure: of the quickstart and of `benchmarks/`."""

from tests.documents import stand_ins
from tests.documents.row import READER, SMALL, Run

TABLES = (*SMALL, "--seeds=1", "--iterations=2", "--num_images=70")
MIXTURES = ("--presets", "two_normals", "--student_steps", "1", "--iterations=2")
SAMPLERS = (
    *("--calls=1,2", "--num_samples=64", "--workdir=sampled"),
    "--document=docs/samplers.md",
)

MEASUREMENTS = (
    Run(
        "python -m benchmarks.scenes*",
        (
            *READER,
            *("--num_images=40", "--teacher_steps=2", "--classifier_steps=2"),
            "--document=docs/text.md",
        ),
        leaves=("docs/images/scenes.png",),
        says="caption accuracy",
        around=stand_ins.few_scenes,
        slow=True,
    ),
    Run(
        "python -m benchmarks.samplers",
        ("--presets=ring", *SAMPLERS),
        says="results: sampled/results.json",
        slow=True,
    ),
    Run(
        "python -m benchmarks.samplers --presets=ring *",
        SAMPLERS,
        says="results: sampled/results.json",
        slow=True,
    ),
    Run(
        "python -m benchmarks.mixtures",
        (*MIXTURES, "--seeds=1", "--num_samples=64", "--no_document"),
        leaves=("runs/mixtures/results.json",),
        slow=True,
    ),
    Run(
        "python -m benchmarks.determinism",
        ("--steps=2", "--document=docs/reliability.md"),
        says="wrote docs/reliability.md",
        slow=True,
    ),
    Run(
        "python -m benchmarks.guidance",
        (*TABLES, "--workdir=guided", "--num_steps=2", "--document=docs/guidance.md"),
        says="wrote docs/guidance.md",
        slow=True,
    ),
    Run("python -m benchmarks.tables", way="parsed only"),
    Run(
        "python -m benchmarks.tables table1",
        (*TABLES, "--document=docs/results.md"),
        leaves=("runs/tables/floors.json",),
        slow=True,
    ),
    Run(
        "python -m benchmarks.tables --only_write",
        (*TABLES, "--document=docs/results.md"),
        needs=("runs/tables/floors.json",),
        slow=True,
    ),
    Run(
        "bash launch/quickstart.sh",
        SMALL,
        leaves=("runs/quickstart/results.json", "runs/quickstart/report.html"),
        says="cd",
        as_process=True,
        slow=True,
    ),
    Run(
        "bash launch/quickstart.sh --workdir=runs/trial *",
        SMALL,
        leaves=("runs/trial/results.json", "runs/trial/report.html"),
        as_process=True,
        slow=True,
    ),
)
