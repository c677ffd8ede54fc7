"""`multistep-cm COMMAND --help`: the command line.

Every command is a module with `add_arguments(parser)`, `run(arguments, overrides) ->
int` and, if SIGTERM may end it anywhere, the sentence `STOPPED` that is said then. It
is imported only when it is called, so that `--help` does not wait for JAX.
"""

import argparse
import gc
import importlib
import io
import os
import sys
import threading
from collections.abc import Sequence

from multistep_cm import __version__
from multistep_cm.commands.arguments import Parser
from multistep_cm.errors import UserError

MANY_OBJECTS = 50_000
"""How many new ones Python's garbage collector waits for. To import and to trace makes
a million that stay: walked after every 700, they take a seventh of a start."""

COMMANDS = {
    "train": "train a teacher or a student; continues by itself what was begun",
    "sample": "draw images from a trained run, as a picture or an .npz",
    "evaluate": "measure a trained run: Fréchet distance, class accuracy, variance",
    "export": "write a run's sampler as a file that needs jax alone, or its weights",
    "report": "a page that shows a run or compares several: curves, samples, numbers",
    "verify": "check every checkpoint of a run: are all bytes those that were saved?",
    "plan": "what a config costs on a TPU slice, before anyone pays for it",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status. Bad input prints one sentence and gives 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file's name may hold bytes that the terminal's encoding does not have.
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(__version__)
        return 0
    name = argv[0]
    if name not in COMMANDS:
        expected = ", ".join(COMMANDS)
        message = f"multistep-cm: no command {name!r:.100}; there are: {expected}"
        print(message, file=sys.stderr)
        return 2
    try:
        rest, overrides = split_overrides(argv[1:])
        module = importlib.import_module(f"multistep_cm.commands.{name}")
        parser = Parser(
            prog=f"multistep-cm {name}",
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(parser)
        arguments = parser.parse_args(rest)
        # With a sentence SIGTERM may end the command anywhere; train asks itself.
        ends = getattr(module, "STOPPED", None)
        if ends is None:
            return int(module.run(arguments, overrides))
        from multistep_cm.sharding.stopping import Stopping

        sentence = f"multistep-cm {name}: stopped by SIGTERM: {ends}"
        with Stopping(sentence) as stopping:
            return int(module.run(arguments, overrides))
        return stopping.status
    except UserError as error:
        print(f"multistep-cm {name}: {error}", file=sys.stderr)
        return 2


def program() -> int:
    """`main` as a program of its own, which ends when it has said why.

    A save that failed leaves threads of Orbax behind. They wait five minutes for what
    will not come, and Python would wait for them.
    """
    gc.set_threshold(MANY_OBJECTS)
    status = main()
    gc.freeze()  # else Python looks through all that is left once more
    others = [type(t).__module__ for t in threading.enumerate() if not t.daemon]
    if status and any(module.startswith("orbax.") for module in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def split_overrides(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Separate `--config.key=value` (or `--config.key value`) from other arguments.

    Raises UserError for an override without a value.
    """
    rest: list[str] = []
    overrides: dict[str, str] = {}
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
            continue
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            following = next(words, None)
            if following is None:
                raise UserError(f"{word} has no value: write {word}=VALUE")
            value = following
        overrides[key] = value
    return rest, overrides


def _usage() -> str:
    lines = [f"  {name:<10} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: multistep-cm COMMAND [options]",
            "",
            "Multistep Consistency Models: train a diffusion model, distil it into a",
            "student of 1 to 16 steps, sample and measure it.",
            "",
            *lines,
            "",
            "multistep-cm COMMAND --help explains each.",
        ]
    )
