"""The `flatwise` command: arguments in, one of the commands run, an exit code out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Protocol

import tyro

from flatwise import __version__
from flatwise.cli.compare import Compare
from flatwise.cli.demo import Demo
from flatwise.cli.listing import List
from flatwise.cli.measure import Measure
from flatwise.cli.report import Report
from flatwise.cli.reproduce import Reproduce
from flatwise.cli.streams import replace_unknown_letters, say_no_more
from flatwise.cli.sweep import Sweep
from flatwise.cli.train import Train

BAD_INPUT, INTERRUPTED, READER_GONE = 2, 130, 141

DESCRIPTION = """Train neural networks towards flat minima, and measure whether they got there.

Errors are one sentence; with --debug (or FLATWISE_DEBUG=1) they come with a traceback. --version says which flatwise this is."""


class Command(Protocol):
    """What every command offers, besides its arguments as fields."""

    def run(self, words: Sequence[str]) -> int:
        """Do it, and return the exit code; `words` is the command line, from the command's own name on."""
        ...


COMMANDS: dict[str, type[Command]] = {
    "demo": Demo,
    "train": Train,
    "compare": Compare,
    "measure": Measure,
    "reproduce": Reproduce,
    "sweep": Sweep,
    "report": Report,
    "list": List,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name (by default those of this process), and exit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words or bool(os.environ.get("FLATWISE_DEBUG"))
    words = [word for word in words if word != "--debug"]
    replace_unknown_letters()
    if words == ["--version"]:
        print(f"flatwise {__version__}")
        sys.exit()
    try:
        _check_name(words)
        command: Command = tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="flatwise", description=DESCRIPTION, args=words
        )
        _check_alone(words[0], command)
        code = command.run(words)
        print(end="", flush=True)  # a reader that has gone is noticed here, not after the end
        sys.exit(code)
    except KeyboardInterrupt:
        print("stopped; the same command continues from here", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # of our own standard output: that of a worker is met where it is written to
        say_no_more()
        sys.exit(READER_GONE)
    except (ValueError, TypeError, OSError) as error:
        if debug:
            raise
        print(f"flatwise: {_sentence(error)}", file=sys.stderr)
        sys.exit(BAD_INPUT)


def _check_name(words: Sequence[str]) -> None:
    """Answer a misspelt command with the nearest one; what else is wrong, tyro says."""
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        near = get_close_matches(words[0].lower(), COMMANDS, n=1, cutoff=0.0)[0]
        raise ValueError(f"no command is called {words[0]!r}; did you mean {near!r}? There are: {', '.join(COMMANDS)}")


def _check_alone(name: str, command: Command) -> None:
    """Under torchrun every process would do all of it, in the same folders."""
    several = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if several and not isinstance(command, Train):
        raise ValueError(
            f"flatwise {name} is one process: start it without torchrun; only flatwise train can be shared"
        )


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
