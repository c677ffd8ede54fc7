"""Fresh parameters of a config's network, and their shapes."""

from pathlib import Path

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from multistep_cm import factory
from multistep_cm.losses.signature import Params
from multistep_cm.sharding.rules import place_abstract
from multistep_cm.training.tracing import Init, kept_init


def make_init(config: ConfigDict, mesh: Mesh, programs: Path | None = None) -> Init:
    """The network's initialisation.

    With `programs`, a folder, it is traced only if no earlier start has left it there.
    """
    network = factory.make_network(config)

    def init(key: jax.Array) -> Params:
        return factory.init_params(network, config, key)

    return init if programs is None else kept_init(init, config, mesh, programs)


def abstract_params(
    config: ConfigDict, mesh: Mesh, programs: Path | None = None
) -> Params:
    """Shapes, dtypes and shardings of the parameters; nothing is allocated."""
    init = make_init(config, mesh, programs)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        params = jax.eval_shape(init, jax.random.key(0))
    return place_abstract(params, mesh)
