"""The table of training methods: a name in the config to a loss.

To add a method, write `losses/NAME.py` with a `Loss` maker and add one line here.
"""

import dataclasses
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.losses.consistency import ConsistencyOptions, make_consistency_loss
from multistep_cm.losses.denoising import make_denoising_loss
from multistep_cm.losses.signature import Loss, Predict


@dataclasses.dataclass(frozen=True)
class TrainingMethod:
    """How a method trains.

    Attributes:
        make_loss: the loss from a predictor, a schedule and the whole config.
        is_student: sampled with `consistency.student_steps` steps of algorithm 2.
        needs_teacher: reads `frozen["teacher_params"]`.
    """

    make_loss: Callable[[Predict, Schedule, ConfigDict], Loss]
    is_student: bool
    needs_teacher: bool


def _denoising(predict: Predict, schedule: Schedule, config: ConfigDict) -> Loss:
    return make_denoising_loss(predict, schedule)


def _distillation(predict: Predict, schedule: Schedule, config: ConfigDict) -> Loss:
    options = ConsistencyOptions(**config.consistency)
    return make_consistency_loss(predict, schedule, options, distill=True)


def _consistency_training(
    predict: Predict, schedule: Schedule, config: ConfigDict
) -> Loss:
    options = ConsistencyOptions(**config.consistency)
    return make_consistency_loss(predict, schedule, options, distill=False)


METHODS: Mapping[str, TrainingMethod] = {
    "denoising": TrainingMethod(_denoising, is_student=False, needs_teacher=False),
    "cd": TrainingMethod(_distillation, is_student=True, needs_teacher=True),
    "ct": TrainingMethod(_consistency_training, is_student=True, needs_teacher=False),
}
