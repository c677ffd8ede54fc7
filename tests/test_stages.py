"""The published methods as config keys."""

import pytest

from multistep_cm.config import default_config
from multistep_cm.errors import UserError
from multistep_cm.stages import STAGES, apply_stage
from multistep_cm.training.methods import METHODS
from multistep_cm.validation import validate


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_is_a_valid_config(stage: str) -> None:
    config = default_config()
    config.teacher.workdir = "T"
    apply_stage(config, stage, steps=0, default_steps=4)
    validate(config)
    one = stage in ("cm_cd", "cm_ct", "ict")
    assert config.consistency.student_steps == (1 if one else 4)
    apply_stage(config, stage, steps=2, default_steps=4)
    assert config.consistency.student_steps == 2


def test_every_method_has_a_stage() -> None:
    assert {keys["method"] for keys in STAGES.values()} == set(METHODS)


def test_an_unknown_stage() -> None:
    with pytest.raises(UserError, match="stage is 'pd', expected: teacher, guidance"):
        apply_stage(default_config(), "pd", 0, 4)
