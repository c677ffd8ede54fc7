"""Sample grids while a run trains: averaged and raw weights from the same noise."""

from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm.generation import (
    Generator,
    compile_generator,
    default_wanted,
    sampling_options,
)
from multistep_cm.reporting.grids import image_grid, save_png
from multistep_cm.reporting.metrics import Writer
from multistep_cm.sharding.distributed import is_main_process
from multistep_cm.training.state import TrainState


class Preview:
    """Draws `samples/STEP.png`; compiles its sampler when first needed."""

    def __init__(
        self, config: ConfigDict, workdir: Path, mesh: Mesh, writer: Writer
    ) -> None:
        self.config = config
        self.folder = workdir / "samples"
        self.mesh = mesh
        self.writer = writer
        self._generator: Generator | None = None

    def is_due(self, step: int) -> bool:
        """After the last step, and every `sampling.every_steps`."""
        sampling = self.config.sampling
        if not sampling.num_previews:
            return False
        last = step == self.config.training.num_steps
        return last or bool(sampling.every_steps and step % sampling.every_steps == 0)

    def compile(self) -> Generator:
        """The sampler, compiled once."""
        if self._generator is None:
            options = sampling_options(self.config)
            number = self.config.sampling.num_previews
            self._generator = compile_generator(self.config, options, self.mesh, number)
        return self._generator

    def draw(self, step: int, state: TrainState) -> None:
        """Sample both weights; every process samples, the main one writes."""
        number = self.config.sampling.num_previews
        wanted = default_wanted(self.config, number)
        generator = self.compile()
        averaged = generator(state.ema, wanted, seed=0)
        raw = generator(state.params, wanted, seed=0)
        if not is_main_process():
            return
        grid = image_grid(averaged, columns=10)
        save_png(self.folder / f"{step}.png", grid)
        pictures = {"samples/ema": grid, "samples/raw": image_grid(raw, columns=10)}
        self.writer.images(step, pictures)
