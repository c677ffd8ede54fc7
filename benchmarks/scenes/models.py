"""The runs of the table: how each is trained, and drawn from."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np

from multistep_cm.config import load_config
from multistep_cm.data.captions import encode_bytes
from multistep_cm.errors import UserError
from multistep_cm.generation import compile_generator, sampling_options
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training.loop import train
from multistep_cm.training.teacher import load_ema
from multistep_cm.workdir import read_config

CONFIG = Path(__file__).parents[2] / "configs" / "digit_scenes.py"
SCALES = (0.0, 0.5, 3.0)
"""Of guidance: none, and the paper's two."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all runs have in common.

    Attributes:
        workdir: holds the data, a folder for each run, and what was measured.
        seed: of training.
        teacher_steps: sampling steps of the diffusion model and its distillation.
        num_images: measured of each split.
        longer, students_longer: what multiplies the length of training of the
            diffusion model, and of all others.
        classifier_steps: optimizer steps of the classifier.
        overrides: config keys of every run.
    """

    workdir: Path
    seed: int
    teacher_steps: int
    num_images: int
    longer: int
    students_longer: int
    classifier_steps: int
    overrides: tuple[tuple[str, str], ...] = ()

    @property
    def data(self) -> Path:
        """Where the dataset is."""
        return self.workdir.resolve() / "data"


@dataclasses.dataclass(frozen=True)
class Model:
    """One run: its folder, title in the table, stage and steps of the config."""

    name: str
    title: str
    stage: str
    steps: int = 0

    def sampling_steps(self, settings: Settings) -> int:
        """A student has its own number; the others take the teacher's."""
        return self.steps or settings.teacher_steps


MODELS = (
    Model("teacher", "diffusion model", "teacher"),
    Model("guidance", "guidance-distilled", "guidance"),
    Model("cd16", "CD", "cd", 16),
    Model("cd8", "CD", "cd", 8),
    Model("cd4", "CD", "cd", 4),
)


def train_model(model: Model, settings: Settings) -> Path:
    """The folder of the run, which is trained as far as it is not yet.

    Raises UserError when it was stopped.
    """
    folder = settings.workdir / model.name
    is_teacher = model.stage == "teacher"
    keys = {
        "data.directory": str(settings.data),
        "sampling.num_previews": "0",
        "seed": str(settings.seed),
    }
    if not is_teacher:
        keys["teacher.workdir"] = str((settings.workdir / "teacher").resolve())
    steps = f",steps={model.steps}" if model.steps else ""
    longer = settings.longer if is_teacher else settings.students_longer
    config = load_config(
        f"{CONFIG}:stage={model.stage}{steps},longer={longer}",
        {**keys, **dict(settings.overrides)},
    )
    if not train(config, folder):
        raise UserError(f"{folder} was stopped; the same command continues")
    return folder


def draw(
    folder: Path, num_steps: int, scale: float, captions: list[str], seed: int
) -> np.ndarray:
    """One image for every caption by the averaged weights, uint8 [n, 16, 16, 1]."""
    config = read_config(folder)
    mesh, params = _load(folder)
    options = sampling_options(config, "ddim", num_steps, scale)
    batch_size = min(100, len(captions))
    generator = compile_generator(config, options, mesh, batch_size)
    wanted, _ = encode_bytes(captions, config.data.text_length)
    wanted["label"] = np.zeros(len(captions), np.int32)
    return generator(params, wanted, seed)


@functools.cache
def _load(folder: Path) -> tuple[jax.sharding.Mesh, object]:
    config = read_config(folder)
    mesh = make_mesh(config.mesh)
    return mesh, load_ema(folder, config, mesh)[1]
