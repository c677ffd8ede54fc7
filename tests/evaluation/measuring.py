"""One of several processes that measure the same images: prints what it found.

python -m tests.evaluation.measuring COUNT [COORDINATOR NUMBER PROCESS]
"""

import hashlib
import json
import sys

import numpy as np

from multistep_cm.evaluation import activations as module
from multistep_cm.evaluation import features, inception_score
from multistep_cm.evaluation.activations import Extractor, activations
from multistep_cm.evaluation.classifier import TrainingSettings, train_classifier
from multistep_cm.evaluation.manifold import precision_and_recall
from multistep_cm.sharding.distributed import ProcessOptions, start_processes
from multistep_cm.sharding.mesh import make_mesh
from tests.evaluation import tiny


def main(count: str, *where: str) -> None:
    """Join the others, measure, print one line of JSON."""
    if where:
        coordinator, number, process = where
        start_processes(ProcessOptions(coordinator, int(number), int(process)))
    module.IMAGES_PER_PART = 3
    inception_score.SPLIT = 10
    vars(features)["_FORWARD_BATCH"] = 4
    images = tiny.make_images(int(count))
    read = 0

    def own(indices: np.ndarray) -> np.ndarray:
        nonlocal read
        read += len(indices)
        return images[indices]

    mesh = make_mesh({"data": 2, "fsdp": -1, "tensor": 1})
    extractor = Extractor(tiny.taps, tiny.make_params(48), mesh)
    found = activations(extractor, own, int(count), np.arange(int(count)))
    real = found.kept[::2] + np.float32(0.25)
    labels = np.arange(len(images)) % 2
    settings = TrainingSettings(num_steps=1, batch_size=4)
    classifier = train_classifier(images, labels, images, labels, 2, 0, settings)
    arrays = {
        "features": features.features_and_logits(classifier, images, mesh)[0],
        "pool_mean": found.pool.mean,
        "pool_scatter": found.pool.scatter,
        "spatial_mean": found.spatial.mean,
        "spatial_scatter": found.spatial.scatter,
        "kept": found.kept,
        "score": np.float64(found.inception_score),
        "manifold": np.array(precision_and_recall(real, found.kept, mesh)),
    }
    bits = b"".join(np.ascontiguousarray(a).tobytes() for a in arrays.values())
    values = {name: array.tolist() for name, array in arrays.items()}
    line = {"read": read, "bits": hashlib.sha256(bits).hexdigest()} | values
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
