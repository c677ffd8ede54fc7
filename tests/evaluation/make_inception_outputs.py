"""Makes the files in `data/`, where torch and torch-fidelity are; not run by tests.

  python tests/evaluation/make_inception_outputs.py

`inception_outputs.npz` is what torch-fidelity's network says of our images. The weights
are seeded noise (`seeded.py`), so no weight file is needed and none is committed. Every
so many numbers one is kept (`STRIDES`), as float32. `zip.pth` and `sequence.pth` are
small files of tensors in both layouts of torch.
"""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import seeded
import torch

DATA = Path(__file__).parent / "data"
OUTPUT = DATA / "inception_outputs.npz"
STRIDES = {"64": 1, "192": 3, "768": 7, "2048": 11, "logits_unbiased": 7, "spatial": 13}


def network(folder: Path) -> Any:
    """torch-fidelity's feature extractor, with seeded weights, in float32."""
    # Its own __init__ imports torchvision, which this file of it does not need.
    package = types.ModuleType("torch_fidelity")
    package.__path__ = [str(folder)]
    sys.modules["torch_fidelity"] = package
    module: Any = importlib.import_module(
        "torch_fidelity.feature_extractor_inceptionv3"
    )
    names = [name for name in STRIDES if name != "spatial"]
    # It loads a file when it is made; hand it ours by the same door.
    load, torch.load = torch.load, lambda *_, **__: {}
    module.FeatureExtractorInceptionV3.load_state_dict = lambda self, _: None
    made = module.FeatureExtractorInceptionV3("seeded", names, "none")
    torch.load = load
    shapes = {name: tuple(value.shape) for name, value in made.state_dict().items()}
    values = {n: torch.from_numpy(v) for n, v in seeded.weights(shapes).items()}
    torch.nn.Module.load_state_dict(made, values)
    return made.eval()


def save_tensors() -> None:
    """A state dict with a parameter, a transposed view, a shared storage, counters."""
    layer = torch.nn.BatchNorm1d(3)
    values = layer.state_dict()
    values["parameter"] = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    values["transposed"] = torch.arange(24, dtype=torch.float64).reshape(2, 3, 4).mT
    values["part"] = torch.arange(10)[3:7:2]
    values["half"] = torch.tensor([0.5, -2.0], dtype=torch.float16)
    values["scalar"] = torch.tensor(7.0)
    values["empty"] = torch.zeros(0, 3)
    torch.save(values, DATA / "zip.pth")
    sequence = DATA / "sequence.pth"
    torch.save(values, sequence, _use_new_zipfile_serialization=False)


def main() -> None:
    """Compute and write."""
    spec = importlib.util.find_spec("torch_fidelity")
    assert spec is not None and spec.submodule_search_locations
    made = network(Path(spec.submodule_search_locations[0]))
    seen: dict[str, torch.Tensor] = {}
    made.Mixed_6d.register_forward_hook(lambda *found: seen.update(spatial=found[-1]))
    kept = {}
    for image, pixels in seeded.images().items():
        outputs = made(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        found = dict(zip(made.features_list, outputs, strict=True))
        # As the ADM evaluator cuts it: seven channels, channels last.
        found["spatial"] = seen["spatial"][:, :7].permute(0, 2, 3, 1).flatten(1)
        for name, stride in STRIDES.items():
            values = found[name].numpy().reshape(-1)[::stride]
            print(image, name, values.shape, float(np.abs(values).mean()))
            kept[f"{image}/{name}"] = values
    DATA.mkdir(exist_ok=True)
    save_tensors()
    np.savez(OUTPUT, **kept)  # type: ignore[arg-type]
    print(f"wrote {OUTPUT}: {OUTPUT.stat().st_size} bytes; torch {torch.__version__}")


if __name__ == "__main__":
    main()
