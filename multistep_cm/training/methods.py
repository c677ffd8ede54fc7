"""The table of training methods: a name in the config to a loss.

To add a method, write `losses/NAME.py` with a `Loss` maker and add one line here.
"""

import dataclasses
from collections.abc import Callable, Mapping

from ml_collections import ConfigDict

from multistep_cm.diffusion.schedules import Schedule
from multistep_cm.losses.consistency import make_consistency_loss
from multistep_cm.losses.denoising import make_denoising_loss
from multistep_cm.losses.guidance import make_guidance_loss
from multistep_cm.losses.progressive import make_progressive_loss
from multistep_cm.losses.segments import ConsistencyOptions
from multistep_cm.losses.signature import Loss, Predict
from multistep_cm.losses.tract import make_tract_loss


@dataclasses.dataclass(frozen=True)
class TrainingMethod:
    """How a method trains.

    Attributes:
        make_loss: the loss from a predictor, a schedule and the whole config.
        is_student: sampled with `consistency.student_steps` steps of algorithm 2.
        needs_teacher: reads `frozen["teacher_params"]`.
        is_guided: learns from a teacher that may be guided.
        uses_grid: hops on the grid of `consistency.teacher_steps_*` and learns from
            itself: reads `frozen["target_params"]` if `consistency.target_decay` > 0.
    """

    make_loss: Callable[[Predict, Schedule, ConfigDict], Loss]
    is_student: bool = True
    needs_teacher: bool = True
    uses_grid: bool = True
    is_guided: bool = False


def _denoising(predict: Predict, schedule: Schedule, config: ConfigDict) -> Loss:
    return make_denoising_loss(predict, schedule)


def _distillation(predict: Predict, schedule: Schedule, config: ConfigDict) -> Loss:
    options = ConsistencyOptions(**config.consistency)
    classes = config.data.num_classes
    return make_consistency_loss(
        predict, schedule, options, distill=True, null_label=classes
    )


def _guidance(predict: Predict, schedule: Schedule, config: ConfigDict) -> Loss:
    options = ConsistencyOptions(**config.consistency)
    return make_guidance_loss(predict, schedule, options, config.data.num_classes)


def _consistency_training(
    predict: Predict, schedule: Schedule, config: ConfigDict
) -> Loss:
    options = ConsistencyOptions(**config.consistency)
    return make_consistency_loss(predict, schedule, options, distill=False)


def _progressive(predict: Predict, schedule: Schedule, config: ConfigDict) -> Loss:
    options = ConsistencyOptions(**config.consistency)
    return make_progressive_loss(predict, schedule, options)


def _tract(predict: Predict, schedule: Schedule, config: ConfigDict) -> Loss:
    options = ConsistencyOptions(**config.consistency)
    return make_tract_loss(predict, schedule, options, config.data.range)


METHODS: Mapping[str, TrainingMethod] = {
    "denoising": TrainingMethod(
        _denoising, is_student=False, needs_teacher=False, uses_grid=False
    ),
    "guidance": TrainingMethod(
        _guidance, is_student=False, uses_grid=False, is_guided=True
    ),
    "cd": TrainingMethod(_distillation, is_guided=True),
    "ct": TrainingMethod(_consistency_training, needs_teacher=False),
    "progressive": TrainingMethod(_progressive, uses_grid=False),
    "tract": TrainingMethod(_tract),
}
