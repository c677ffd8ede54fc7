"""The real TPU compiler: skipped where the extra `tpu` is not installed."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from multistep_cm.planning.chips import CHIPS

ROOT = Path(__file__).parents[2]

needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="needs the TPU compiler: pip install 'multistep_cm[tpu]'",
)


def plan(*words: str) -> subprocess.CompletedProcess[str]:
    """A plan as a newcomer asks for it, with nothing set for JAX."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    return subprocess.run(
        [sys.executable, "-m", "multistep_cm", "plan", *words],
        capture_output=True,
        text=True,
        timeout=600,
        env=clean,
        cwd=ROOT,
    )


@needs_compiler
@pytest.mark.parametrize("stage", ["cd", "teacher"])
def test_a_plan_for_eight_chips(stage: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    done = plan(
        f"--config=configs/digits.py:stage={stage}",
        "--topology=v5e:2x4",
        "--config.mesh.data=1",
        "--config.mesh.fsdp=-1",
        "--config.model.scan_blocks=True",
        f"--output={path}",
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, "the compiler is not quiet"
    content = json.loads(path.read_text())
    assert content["fits"]
    assert content["num_devices"] == 8
    assert content["parameters"] == 308033
    assert content["hbm_per_device_bytes"] == CHIPS["v5e"].usable_bytes
    assert 0 < content["used_per_device_bytes"] < 2**30
    assert content["estimated_cycles"] > 0
    assert content["roofline"]["fastest_seconds"] > 0
    assert not content["unknown_loops"]
    assert {row["kind"] for row in content["collectives"]} >= {"all-gather"}
    assert content["versions"]["libtpu"] != "absent"


@pytest.mark.slow
@needs_compiler
def test_too_much_is_refused_and_the_remedy_found(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    # A billion parameters: state and gradients are 20 GiB.
    done = plan(
        "--config=configs/digits.py:network=mlp",
        "--topology=v5e:2x2",
        "--config.model.channels=(8192,)",
        "--config.model.mlp_ratio=4",
        "--config.model.blocks=(2,)",
        "--config.model.remat=full",
        f"--output={path}",
    )
    assert done.returncode == 0, done.stderr
    content = json.loads(path.read_text())
    assert not content["fits"]
    assert content["hbm_per_device_bytes"] == CHIPS["v5e"].usable_bytes
    assert content["used_per_device_bytes"] > 4 * 4 * content["parameters"]
    (attempt,) = content["tried"]
    assert attempt["fits"]
    assert attempt["changes"] == {"mesh.data": 1, "mesh.fsdp": -1}
    assert (
        "it does with --config.mesh.data=1 --config.mesh.fsdp=-1" in content["verdict"]
    )


@needs_compiler
@pytest.mark.parametrize("name", ["v3:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:1x1"])
def test_the_compiler_knows_the_names(name: str) -> None:
    code = (
        "from multistep_cm.planning.topology import get_devices, parse_topology\n"
        f"topology = parse_topology({name!r})\n"
        "assert len(get_devices(topology)) == topology.num_devices\n"
    )
    from multistep_cm.planning.topology import compiler_environment

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        env=compiler_environment(os.environ),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
