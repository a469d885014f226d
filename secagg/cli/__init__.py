"""The command line: ``secagg plan | provision | unpack | doctor | serve | site | status | aggregate | demo | …``."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Sequence
from inspect import cleandoc
from typing import TextIO

from .. import errors
from ..storage.signals import terminable
from ..ui.terminal import accept_any_text
from . import (
    add_site,
    aggregate,
    backends,
    bench,
    demo,
    doctor,
    inspect,
    leak,
    plan,
    provision,
    remove_site,
    rotate,
    serve,
    site,
    status,
    unpack,
)

#: Exit code of each kind of error; the first class that fits counts.
EXIT_CODES: tuple[tuple[type[BaseException], int, str], ...] = (
    (errors.ConfigError, 2, "wrong usage or configuration"),
    (errors.KeyFileError, 3, "missing or unusable key or certificate"),
    (errors.BackendUnavailableError, 4, "a library is not installed"),
    (errors.IdentityError, 3, ""),
    (errors.TransportError, 5, "the other side cannot be reached or refused"),
    (errors.QuorumError, 6, "too few sites took part in the round"),
    (errors.FormatError, 7, "damaged or foreign file or message"),
    (errors.SignatureError, 8, "somebody else's signature, or an aggregate that is not what it says it is"),
    (errors.VerificationError, 8, ""),
    (errors.SecAggError, 1, "any other error"),
)

#: What the commands need beyond the core, one backend included.
_EXTRAS = "tenseal,monai,grpc"
_EXTRAS_OF = {bench.run: "tenseal,bench", leak.run: "seal,bench", aggregate.run: "s3fs,ray"}

_PYTHONS_OWN = warnings.showwarning

_COMMANDS = (
    plan,
    provision,
    add_site,
    remove_site,
    rotate,
    unpack,
    doctor,
    serve,
    site,
    status,
    aggregate,
    demo,
    bench,
    leak,
    inspect,
    backends,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        In place of ``sys.argv[1:]``.
    """
    accept_any_text()
    options = _parser().parse_args(arguments)
    warnings.showwarning = _show_warning
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what went wrong, our errors say
    try:
        with terminable():
            return int(options.run(options) or 0)
    except errors.SecAggError as error:
        print(f"secagg: {error}", file=sys.stderr)
        return next(code for kind, code, _ in EXIT_CODES if isinstance(error, kind))
    except ImportError as error:
        extras = _EXTRAS_OF.get(options.run, _EXTRAS)
        print(f"secagg: {error}; this command needs more: pip install 'secagg[{extras}]'", file=sys.stderr)
        return 4
    except BrokenPipeError:  # the reader of the output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(f"secagg: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        goes_on = "; the same command, started again, goes on" if options.run in (site.run, aggregate.run) else ""
        print(f"secagg: stopped{goes_on}", file=sys.stderr)
        return 128 + (error.args[0] if error.args else signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    rows = sorted((code, meaning) for _, code, meaning in EXIT_CODES if meaning)
    codes = "".join(f"  {code}  {meaning}\n" for code, meaning in rows)
    stopped = (
        "  130  stopped by Ctrl-C (not `serve`, which then stops in order)\n  143  the same by SIGTERM, 129 by SIGHUP\n"
    )
    parser = argparse.ArgumentParser(
        prog="secagg",
        description="Encrypted aggregation for federated learning: the server adds updates that it cannot read.",
        epilog=f"exit codes:\n  0  success\n{codes}{stopped}\nexample:\n  {_indent(demo.EXAMPLE)}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"secagg {_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in _COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("_", "-")
        description = cleandoc(command.add_arguments.__doc__ or "")
        sub = commands.add_parser(
            name,
            help=description.partition("\n")[0],
            description=_fill(description),
            epilog=f"example:\n  {_indent(command.EXAMPLE)}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(sub)
        sub.set_defaults(run=command.run)
    return parser


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, (errors.PrivacyWarning, errors.KitWarning)):
        print(f"secagg: warning: {message}", file=sys.stderr)
    else:
        _PYTHONS_OWN(message, category, filename, lineno, file, line)


def _fill(text: str) -> str:
    """Return paragraphs, each filled to the terminal's width as argparse fills the rest."""
    width = shutil.get_terminal_size().columns - 2
    return "\n\n".join(textwrap.fill(paragraph, max(width, 20)) for paragraph in text.split("\n\n"))


def _indent(examples: str) -> str:
    return examples.replace("\n", "\n  ")


def _version() -> str:
    from importlib.metadata import version

    return version("secagg")
