"""MFU: FLOPs counted once, peaks of devices by name."""

import jax
import pytest

from multistep_cm.planning.chips import CHIPS
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training import speed
from multistep_cm.training.speed import (
    TPU_KINDS,
    Speed,
    device_peak,
    flops_per_image,
    make_speed,
)
from tests.training.tiny import one_device, tiny_config


def test_the_fraction_of_the_peak() -> None:
    # 1000 images/s of a gigaflop are a teraflop per second.
    assert Speed(1e9, 4e12).mfu(1000) == pytest.approx(0.25)


def test_peaks_of_devices() -> None:
    assert device_peak("TPU v5 lite") == CHIPS["v5e"].peak_flops
    # Two devices of JAX are one chip.
    assert device_peak("TPU7x") == CHIPS["tpu7x"].peak_flops / 2
    assert device_peak("NVIDIA H100 80GB HBM3") == 989e12
    assert device_peak("NVIDIA H100 PCIe") == 756e12
    assert device_peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert device_peak("cpu") is None
    assert device_peak("TPU v99") is None
    assert set(TPU_KINDS.values()) == set(CHIPS)


def test_without_a_peak_nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "flops_per_image", lambda *_: pytest.fail("traced"))
    config = tiny_config()
    assert make_speed(config, make_mesh(config.mesh, jax.devices()[:1])) is None


def test_an_image_costs_the_same_however_it_is_trained() -> None:
    with one_device():
        config = tiny_config(method="ct")
        mesh = make_mesh(config.mesh)
        expected = flops_per_image(config, mesh)
        for changes in (
            {"model__remat": "full"},
            {"training__steps_per_call": 2},
            {"training__accumulation": 2},
            {"training__batch_size": 16},
        ):
            changed = tiny_config(method="ct", **changes)
            assert flops_per_image(changed, mesh) == pytest.approx(expected)
            assert changed.model.remat == changes.get("model__remat", "none")
        # The teacher's loss has no target: two thirds at most of what it costs.
        teacher = flops_per_image(tiny_config(), mesh)
    assert 0.5 < teacher / expected < 0.9


def test_all_devices_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "device_peak", lambda kind: 1e12)
    monkeypatch.setattr(speed, "flops_per_image", lambda *_: 7.0)
    config = tiny_config()
    assert make_speed(config, make_mesh(config.mesh)) == Speed(7.0, 8e12)
