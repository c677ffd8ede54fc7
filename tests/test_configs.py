"""Every config file, for every stage: it loads, is valid and makes a network."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from multistep_cm import factory
from multistep_cm.config import default_config, load_config
from multistep_cm.errors import UserError
from multistep_cm.models.build import count_parameters
from multistep_cm.stages import STAGES
from multistep_cm.validation import validate

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")
HEADER = ("What:", "Commands:", "Hardware:", "Expected:")


def test_there_are_configs() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_builds(path: Path, stage: str) -> None:
    steps = 2
    config = load_config(
        f"{path}:stage={stage},steps={steps}", {"teacher.workdir": "somewhere"}
    )
    validate(config)
    assert config.method == STAGES[stage]["method"]
    if stage != "teacher":
        assert config.consistency.student_steps == steps
    factory.make_schedule(config)
    network = factory.make_network(config)
    params = factory.abstract_params(network, config)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    inputs = factory.example_inputs(config, batch=3)
    output = jax.eval_shape(
        lambda p: network.apply({"params": p}, *inputs, train=False), params
    )
    size, channels = config.data.image_size, config.data.channels
    assert output.shape == (3, size, size, channels)
    assert output.dtype == jnp.float32


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_teacher_and_student_are_one_network(path: Path) -> None:
    teacher = load_config(f"{path}:stage=teacher", {})
    for stage in STAGES:
        student = load_config(f"{path}:stage={stage}", {})
        assert student.model == teacher.model
        assert student.diffusion == teacher.diffusion
        assert student.data == teacher.data


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_wrong_arguments_are_refused(path: Path) -> None:
    for arguments in ("stage=nothing", "stages=cd", "steps=many"):
        with pytest.raises(UserError, match="config argument"):
            load_config(f"{path}:{arguments}", {})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_says_what_it_is_for(path: Path) -> None:
    spec = importlib.util.spec_from_file_location("config_file", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for word in HEADER:
        assert word in (module.__doc__ or ""), f"{path.name} does not say {word}"


def test_the_default_network_builds() -> None:
    config = default_config()
    validate(config)
    factory.abstract_params(factory.make_network(config), config)


def test_the_digits_have_two_networks() -> None:
    digits = FOLDER / "digits.py"
    names = {}
    for network in ("unet", "mlp"):
        for stage in ("teacher", "cd"):
            keys = {"teacher.workdir": "somewhere"}
            config = load_config(f"{digits}:network={network},stage={stage}", keys)
            validate(config)
            names[network] = config.model.name
    assert names == {"unet": "unet", "mlp": "mlp"}
    with pytest.raises(UserError, match="network is 'vit', expected: unet, mlp"):
        load_config(f"{digits}:network=vit", {})


@pytest.mark.parametrize(
    ("arguments", "millions", "unit"),
    [
        ("imagenet64.py:size=S", 394, 1),
        ("imagenet64.py:size=L", 1230, 10),
        ("imagenet128.py:size=S", 397, 1),
        ("imagenet128.py:size=L", 1250, 10),
    ],
)
def test_the_papers_networks_have_the_papers_size(
    arguments: str, millions: int, unit: int
) -> None:
    """Within one percent of a count that rounds to the paper's, at its unit."""
    config = load_config(f"{FOLDER}/{arguments},stage=ct,steps=8", {})
    network = factory.make_network(config)
    count = count_parameters(factory.abstract_params(network, config))
    assert abs(count / 1e6 - millions) < 0.01 * millions + 0.5 * unit


@pytest.mark.parametrize("size", [64, 128])
def test_the_papers_hyperparameters(size: int) -> None:
    file = f"{FOLDER}/imagenet{size}.py"
    config = load_config(f"{file}:stage=cd,steps=8", {})
    consistency, training = config.consistency, config.training
    assert (config.diffusion.noise_low, config.diffusion.noise_high) == (32, size)
    assert (training.num_steps, training.batch_size) == (200_000, 2048)
    ends = consistency.teacher_steps_start, consistency.teacher_steps_end
    assert (*ends, consistency.anneal_steps) == (64, 1280, 100_000)
    assert (consistency.eta, consistency.huber_epsilon) == (0.75, 1e-4)
    assert consistency.multiscale == (1 if size == 128 else 0)
    assert consistency.weight == "snr_plus_1"
    with pytest.raises(UserError, match="size is 'M', expected: S, L"):
        load_config(f"{file}:size=M", {})


def test_the_papers_text_to_image() -> None:
    file = f"{FOLDER}/text_to_image.py"
    config = load_config(f"{file}:stage=cd,steps=8", {"teacher.workdir": "T"})
    consistency, training = config.consistency, config.training
    assert (config.diffusion.noise_low, config.diffusion.noise_high) == (32, 512)
    assert (training.num_steps, training.batch_size) == (30_000, 2048)
    assert config.model.channels == (128, 256, 1024, 2048, 4096)
    assert config.model.blocks == (3, 3, 3, 3, 16)
    assert (config.model.dropout, consistency.huber_epsilon) == (0.1, 1.0)
    ends = consistency.teacher_steps_start, consistency.teacher_steps_end
    assert (*ends, consistency.anneal_steps) == (256, 256, 0)
    assert consistency.multiscale > 0
    network = factory.make_network(config)
    params = factory.abstract_params(network, config)
    # The 16 blocks of the middle by hand: MLP, self-attention, attention to captions.
    c, hidden, condition, text, head = 4096, 4 * 4096, 1024, 1024, 128
    mlp = 2 * c + (c + 1) * hidden + (condition + 1) * 2 * hidden + (hidden + 1) * c
    attention = 2 * c + 3 * (c * c + c) + 2 * head + c * c + c
    reading = 2 * c + 2 * (c * c + c) + 2 * (text * c + c) + 2 * head
    middle = 16 * (mlp + attention + reading)
    assert count_parameters(params["level_4"]) == middle
    assert count_parameters(params) == 5_077_716_483
