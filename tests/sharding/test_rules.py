"""Which axis of which parameter is cut, on paths, shapes and the real networks."""

from typing import Any

import jax
import optax
import pytest
from jax.sharding import PartitionSpec as P

from multistep_cm import factory
from multistep_cm.sharding import rules
from multistep_cm.sharding.mesh import make_mesh
from multistep_cm.training.optimizer import make_optimizer
from multistep_cm.training.state import make_state
from tests.training.tiny import TWO_LEVELS, tiny_config

BOTH = {"data": 2, "fsdp": 2, "tensor": 2}
FSDP = {"data": 1, "fsdp": 8, "tensor": 1}
NONE = {"data": 8, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("path", "shape", "sizes", "expected"),
    [
        # First of a pair: outputs. Second: inputs.
        ("mlp/up/kernel", (64, 256), BOTH, P("fsdp", "tensor")),
        ("mlp/down/kernel", (256, 64), BOTH, P("tensor", "fsdp")),
        ("attention/out/kernel", (64, 64), BOTH, P("tensor", "fsdp")),
        ("attention/qkv/kernel", (64, 3, 64), BOTH, P("fsdp", None, "tensor")),
        (
            "resnet/conv_in/kernel",
            (3, 3, 32, 64),
            BOTH,
            P(None, None, "fsdp", "tensor"),
        ),
        ("resnet/out/kernel", (3, 3, 64, 32), BOTH, P(None, None, "tensor", "fsdp")),
        # The first axis of scanned blocks counts them and stays whole.
        ("level_1/blocks/mlp/up/kernel", (4, 64, 256), BOTH, P(None, "fsdp", "tensor")),
        # So it is a block's size that counts.
        ("level_1/blocks/mlp/up/kernel", (99, 32, 64), BOTH, P()),
        (
            "level_1/blocks/mlp/down/kernel",
            (512, 128, 64),
            BOTH,
            P(None, "tensor", "fsdp"),
        ),
        ("level_1/blocks/norm/scale", (3, 8192), FSDP, P(None, "fsdp")),
        ("level_1/blocks/norm/scale", (512, 8), FSDP, P()),
        # A level that goes down is not the second matrix of a pair.
        ("level_0_down/kernel", (64, 64), BOTH, P("fsdp", "tensor")),
        ("level_0_down/blocks/up/kernel", (2, 64, 64), BOTH, P(None, "fsdp", "tensor")),
        ("condition/time_out/kernel", (64, 64), BOTH, P("fsdp", "tensor")),
        # Only kernels have a tensor axis.
        ("condition/label/embedding", (1024, 8), BOTH, P("fsdp", None)),
        ("position", (16, 16, 32), BOTH, P(None, None, "fsdp")),
        ("norm/scale", (8192,), BOTH, P("fsdp")),
        # What does not divide stays whole.
        ("a/kernel", (65, 67), BOTH, P(None, None)),
        ("a/kernel", (64, 67), BOTH, P("fsdp", None)),
        ("a/kernel", (63, 72), FSDP, P(None, "fsdp")),
        ("a/kernel", (64, 64), NONE, P(None, None)),
        # Small leaves are not worth a collective.
        ("a/kernel", (63, 65), FSDP, P()),
        ("a/kernel", (8, 511), BOTH, P()),
        ("a/kernel", (8, 512), FSDP, P(None, "fsdp")),
        ("count", (), BOTH, P()),
    ],
)
def test_spec(
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    shape: tuple[int, ...],
    sizes: dict[str, int],
    expected: P,
) -> None:
    monkeypatch.setattr(rules, "SMALLEST_CUT", 4096)
    spec = rules.partition_spec(tuple(path.split("/")), shape, sizes)
    padded = (*spec, *[None] * (len(expected) - len(spec)))
    assert P(*padded) == expected


def leaves(tree: Any) -> dict[str, Any]:
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in paths}


@pytest.mark.parametrize("name", ["unet", "uvit"])
@pytest.mark.parametrize("scan", [True, False])
def test_names_of_the_rules_are_names_of_the_networks(name: str, scan: bool) -> None:
    config = tiny_config(**{**TWO_LEVELS, "model.name": name})
    config.model.scan_blocks = scan
    network = factory.make_network(config)
    params = leaves(factory.abstract_params(network, config))
    modules = {path.split("/")[-2] for path in params if path.endswith("/kernel")}
    expected = {"out", "down"} if name == "uvit" else {"out"}
    assert modules & set(rules.ROW_PARALLEL) == expected
    stacked = {
        path: x for path, x in params.items() if rules.STACKED in path.split("/")
    }
    assert bool(stacked) == scan
    assert all(x.shape[0] == 2 for x in stacked.values())
    # Row-parallel kernels take what a column-parallel one of the same block gives.
    for path, x in params.items():
        block, _, module = path.removesuffix("/kernel").rpartition("/")
        if module == "down":
            assert x.shape[-2] == params[f"{block}/up/kernel"].shape[-1]
        if module == "out" and block.endswith("attention"):
            assert x.shape[-2] == params[f"{block}/qkv/kernel"].shape[-1]


def test_moments_are_cut_like_their_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "SMALLEST_CUT", 64)
    config = tiny_config(**TWO_LEVELS, model__name="uvit")
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    network = factory.make_network(config)
    params = factory.abstract_params(network, config)
    optimizer = make_optimizer(config.training)
    state = jax.eval_shape(lambda p: make_state(p, optimizer), params)
    placed = rules.place_abstract(state, mesh)
    specs = {path: x.sharding.spec for path, x in leaves(placed.params).items()}
    assert sum("tensor" in spec for spec in specs.values()) > 5
    assert sum("fsdp" in spec for spec in specs.values()) > 5
    (adam,) = (
        part for part in placed.optimizer if isinstance(part, optax.ScaleByAdamState)
    )
    for tree in (placed.ema, adam.mu, adam.nu):
        assert {path: x.sharding.spec for path, x in leaves(tree).items()} == specs
    assert placed.step.sharding.spec == P()
