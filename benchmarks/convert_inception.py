"""Check the weights of the FID network and keep them as an .npz, without torch.

  python -m benchmarks.convert_inception --weights=FILE.pth --output=inception.npz

`evaluate` reads the .pth itself; the .npz holds the same arrays under the same names,
for tools that read no .pth. Any file but the published one is refused.
"""

import argparse
import sys
from pathlib import Path

from multistep_cm.errors import UserError
from multistep_cm.evaluation import inception_weights


def main(words: list[str] | None = None) -> int:
    """Convert; 2 with one sentence for a file that is not the right one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.convert_inception",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--weights", type=Path, required=True, metavar="FILE", help="a .pth or .npz")
    add("--output", type=Path, required=True, metavar="FILE.npz")
    arguments = parser.parse_args(words)
    try:
        arrays = inception_weights.read_weights(arguments.weights)
        sha256 = inception_weights.SHA256
        inception_weights.save_weights(arguments.output, arrays, sha256)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {len(arrays)} arrays to {arguments.output} (source: sha256 {sha256})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
