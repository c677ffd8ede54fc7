"""What an evaluation costs, part by part: `python -m benchmarks.evaluation`.

Sampling with students of several steps on the network of configs/digits.py, features
of the small classifier, Inception features as FID computes them, their moments, and the
Fréchet distance itself, each with the programs of `multistep-cm evaluate`, on one
device. Weights and images are random: the time does not depend on their values.
"""

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from benchmarks.documents import replace_between, split_at_marks
from benchmarks.records import write_record
from benchmarks.sampling import CONFIG, make_sampler
from multistep_cm.commands.arguments import Parser, as_path, whole
from multistep_cm.config import load_config
from multistep_cm.errors import UserError
from multistep_cm.evaluation import inception
from multistep_cm.evaluation.activations import IMAGES_PER_PART as BATCH
from multistep_cm.evaluation.activations import Extractor, activations
from multistep_cm.evaluation.features import Classifier, Network, features_and_logits
from multistep_cm.evaluation.frechet import Moments, RunningMoments, frechet_distance
from multistep_cm.files import is_folder, make_folder, read_text, write_text
from multistep_cm.sharding.mesh import make_mesh

MARKS = "<!-- begin evaluation -->", "<!-- end evaluation -->"
EVALUATED, WIDTH = 50_000, inception.NUM_FEATURES
CLASSIFIED, SUMMED = 1024, 2048  # four batches, and one block of `RunningMoments`
SAMPLING, CLASSIFIER = "sampling, {}-step student", "features of the classifier"
INCEPTION = "Inception features, {0}x{0} pixels"
MOMENTS = f"moments of {WIDTH:,} features"
FRECHET = f"Fréchet distance of {WIDTH:,} features"
SMALL = {SAMPLING.format(8): 1, CLASSIFIER: 1}
FID = {SAMPLING.format(8): 1, INCEPTION.format(32): 1, MOMENTS: 2, FRECHET: 2}
"""How often each part is done; sFID is another distance, of 2,023 features."""
Seconds: TypeAlias = dict[str, list[float]]


class Part(NamedTuple):
    """A row. `images` of a round are 0 where all are done at once; `seconds` are of so
    many rounds, after one that does not count."""

    name: str
    images: int
    seconds: Callable[[int], Seconds]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and write the numbers; the exit status."""
    parser = Parser(
        prog="python -m benchmarks.evaluation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=whole(1), default=5)
    parser.add_argument("--output", type=as_path, default=Path("runs/evaluation.json"))
    words = "file with marks that the table goes between"
    parser.add_argument("--document", type=as_path, help=words)
    try:
        args = parser.parse_args(argv)
        check_files(args.output, args.document)
        record = {
            "rounds": args.rounds,
            "parts": measure(parts(), args.rounds),
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "cores": os.cpu_count(),
        }
        write_record(args.output, record)
        text = table(record)
        print(f"{text}\nwrote {args.output}")
        if args.document:
            path = args.document
            write_text(path, replace_between(read_text(path), *MARKS, text, str(path)))
            print(f"wrote {path}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def check_files(output: Path, document: Path | None) -> None:
    """UserError for files that could not be written after minutes of measuring."""
    if is_folder(output):
        raise UserError(f"--output is {output}, a folder: expected the name of a file")
    make_folder(output.parent)
    if document is not None:
        try:
            text = read_text(document)
        except (OSError, ValueError) as error:
            raise UserError(f"--document cannot be read: {error}") from error
        split_at_marks(text, *MARKS, str(document))


def measure(found: Iterable[Part], rounds: int) -> list[dict[str, Any]]:
    """Name, images and raw seconds of every part, one after the other."""
    rows = []
    for name, images, seconds in found:
        print(f"{name} ..", flush=True)
        rows.append({"part": name, "images": images, "seconds": seconds(rounds)})
    return rows


def parts() -> Iterator[Part]:
    """All of them, each made when its turn comes."""
    config = load_config(f"{CONFIG}:stage=cd", {})
    images, data = config.evaluation.batch_size, config.data
    for steps in (1, 2, 4, 8):
        sample = make_sampler("cd", steps, images)
        yield Part(SAMPLING.format(steps), images, partial(in_rounds, sample))
    shape = CLASSIFIED, data.image_size, data.image_size, data.channels
    classify = make_classify(shape, data.num_classes)
    yield Part(CLASSIFIER, CLASSIFIED, partial(in_rounds, classify))
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    extractor = Extractor(inception.taps, random_inception(), mesh)
    for side in (32, 64):
        yield Part(INCEPTION.format(side), BATCH, partial(in_batches, extractor, side))
    features = np.random.default_rng(0).standard_normal((SUMMED, WIDTH), np.float32)
    add = partial(RunningMoments(SUMMED).add, features)
    yield Part(MOMENTS, SUMMED, partial(in_rounds, add))
    yield Part(FRECHET, 0, partial(in_rounds, make_distance(WIDTH)))


def make_classify(
    shape: tuple[int, int, int, int], classes: int
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """Features and logits of images of this shape, by a fresh classifier."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    params = jax.jit(Network(classes).init)(jax.random.key(0), pixels[:1])["params"]
    classifier = Classifier(params, classes, shape[1:], 1.0, 0.0)
    return lambda: features_and_logits(classifier, pixels)


def random_inception() -> Any:
    """Parameters of the FID network as a weight file gives them: float32, on the host.

    Their scale keeps activations from fading: processors can be slow with tiny numbers.
    """
    rng = np.random.default_rng(0)
    pixels = jax.ShapeDtypeStruct((1, inception.SIDE, inception.SIDE, 3), np.float32)
    tree = jax.eval_shape(inception.Inception().init, jax.random.key(0), pixels)

    def draw(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        values = rng.standard_normal(leaf.shape, np.float32)
        return values * np.float32((2 / max(1, np.prod(leaf.shape[:-1]))) ** 0.5)

    return jax.tree.map(draw, tree["params"])


def in_batches(extractor: Extractor, side: int, rounds: int) -> Seconds:
    """Of the batches of one pass: a second pass would compile its program again."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (BATCH, side, side, 3), np.uint8)
    ends: list[tuple[float, float]] = []

    def read(indices: np.ndarray) -> np.ndarray:
        return pixels[indices % BATCH]

    count, none = (1 + rounds) * BATCH, np.arange(0)
    activations(extractor, read, count, none, lambda _: ends.append(clocks()))
    return between(ends)


def make_distance(dimension: int) -> Callable[[], float]:
    """The distance of two sets of moments whose roots are not known yet."""
    rng = np.random.default_rng(0)
    shape = dimension + dimension // 4 + 1, dimension
    sides = [Moments.of(rng.standard_normal(shape)) for _ in range(2)]
    # Moments keep their root: these are copied without, as a new evaluation has none.
    return lambda: frechet_distance(*map(dataclasses.replace, sides))


def clocks() -> tuple[float, float]:
    """Wall and processor seconds."""
    return time.perf_counter(), time.process_time()


def in_rounds(call: Callable[[], object], rounds: int) -> Seconds:
    """Of every call, after one that does not count."""
    ends = []
    for _ in range(1 + rounds):
        call()
        ends.append(clocks())
    return between(ends)


def between(ends: Sequence[tuple[float, float]]) -> Seconds:
    """What passed from each to the next, by both clocks."""
    wall, cpu = np.diff(np.array(ends), axis=0).T.tolist()
    return {"wall": wall, "cpu": cpu}


def table(record: Mapping[str, Any]) -> str:
    """A row for each part, and what all images cost with and without FID."""
    head = "| part | images a round | images/s (least .. most) | images a CPU-s |"
    lines = [f"{head} {EVALUATED:,} images |", "|---|---|---|---|---|"]
    costs: dict[str, float] = {}
    for row in record["parts"]:
        name, images, seconds = row["part"], row["images"], row["seconds"]
        wall, cpu = (statistics.median(seconds[clock]) for clock in ("wall", "cpu"))
        costs[name] = wall * EVALUATED / images if images else wall
        cells = "once | |"
        if images:
            least, most = images / max(seconds["wall"]), images / min(seconds["wall"])
            rates = f"{rate(images / wall)} ({rate(least)} .. {rate(most)})"
            cells = f"{images:,} | {rates} | {rate(images / cpu)}"
        lines.append(f"| {name} | {cells} | {duration(costs[name])} |")
    lines += [
        "",
        f"{EVALUATED:,} images of an 8-step student of the digits cost here, with FID "
        f"and sFID, {cost(costs, FID)}; with the classifier instead "
        f"{cost(costs, SMALL)}. Medians over {record['rounds']} rounds; "
        f"{record['device']}, {record['cores']} cores, jax {record['jax']}.",
    ]
    return "\n".join(lines)


def cost(costs: Mapping[str, float], times: Mapping[str, int]) -> str:
    """Of so many times each part, and which part dominates."""
    spent = {name: number * costs[name] for name, number in times.items()}
    total, most = sum(spent.values()), max(spent, key=lambda name: spent[name])
    return f"{duration(total)}, {spent[most] / total:.1%} of it {most}"


def rate(images: float) -> str:
    """Images a second; digits where there are few."""
    return f"{images:,.0f}" if images >= 100 else f"{images:.2f}"


def duration(seconds: float) -> str:
    """In the unit in which it is easily read."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(main())
