"""The command line: ``secagg plan | keygen | serve | site | demo | inspect | backends``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import errors
from . import backends, demo, inspect, keygen, plan, serve, site

#: Exit code of each kind of error; the first class that fits counts.
EXIT_CODES: tuple[tuple[type[BaseException], int, str], ...] = (
    (errors.ConfigError, 2, "wrong usage or configuration"),
    (errors.KeyFileError, 3, "missing or unusable key or certificate"),
    (errors.BackendUnavailableError, 4, "a library is not installed"),
    (errors.TransportError, 5, "the other side cannot be reached or refused"),
    (errors.QuorumError, 6, "too few sites took part in the round"),
    (errors.FormatError, 7, "damaged or foreign file or message"),
    (errors.SecAggError, 1, "any other error"),
)

#: What the commands need beyond the core, one backend included.
_EXTRAS = "tenseal,monai,grpc"

_COMMANDS = (plan, keygen, serve, site, demo, inspect, backends)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        In place of ``sys.argv[1:]``.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except errors.SecAggError as error:
        print(f"secagg: {error}", file=sys.stderr)
        return next(code for kind, code, _ in EXIT_CODES if isinstance(error, kind))
    except ImportError as error:
        print(f"secagg: {error}; this command needs more: pip install 'secagg[{_EXTRAS}]'", file=sys.stderr)
        return 4
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"secagg: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("secagg: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    codes = "".join(f"  {code}  {meaning}\n" for _, code, meaning in sorted(EXIT_CODES, key=lambda row: row[1]))
    parser = argparse.ArgumentParser(
        prog="secagg",
        description="Encrypted aggregation for federated learning: the server adds updates that it cannot read.",
        epilog=f"exit codes:\n  0  success\n{codes}  130  stopped by Ctrl-C\n\nexample:\n  {_indent(demo.EXAMPLE)}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"secagg {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        name = command.__name__.rpartition(".")[2]
        description = command.add_arguments.__doc__ or ""
        sub = commands.add_parser(
            name,
            help=description,
            description=description,
            epilog=f"example:\n  {_indent(command.EXAMPLE)}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def _indent(examples: str) -> str:
    return examples.replace("\n", "\n  ")


def _version() -> str:
    from importlib.metadata import version

    return version("secagg")
