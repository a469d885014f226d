"""``secagg bench``: what secagg costs, beside others, with this machine and this model."""

from __future__ import annotations

import argparse
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from types import ModuleType

from ..errors import ConfigError, show

EXAMPLE = """secagg bench my_model.pt
secagg bench shapes.json --sites 30 --out bench
secagg bench peers
secagg bench clara --help"""

#: Each has a module of its own, which is loaded when it is asked for: they need more than other commands.
_KINDS = {
    "clara": "the tables of NVIDIA Clara Train's paper, on one machine",
    "peers": "NVFlare's HE, bare HE libraries, Flower's SecAgg+ and plain float32, in one run",
    "growth": "from 10⁵ to 10⁹ parameters, from 2 to 1000 sites, from 10 Mbit/s to 10 Gbit/s",
    "shards": "a round that is added where its updates lie, here and, simulated, on many machines",
    "report": "a page and pictures of what the others have measured",
}
_MODEL = "model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Measure a model of your own with all backends, or repeat a benchmark: clara, peers, growth, shards, report."""
    kinds = "".join(f"; {name}: {what}" for name, what in _KINDS.items())
    parser.add_argument("what", metavar="MODEL_OR_BENCHMARK", help=f"a model's file, as of `secagg plan`{kinds}")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, metavar="…", help="its own options, behind it: add --help"
    )


def run(options: argparse.Namespace) -> int:
    """Run what is asked for."""
    kind = options.what if options.what in _KINDS else _MODEL
    if kind == _MODEL and not Path(options.what).suffix and not Path(options.what).exists():
        raise ConfigError(f"there is no file {show(options.what)}, and no benchmark: those are {', '.join(_KINDS)}")
    arguments = options.arguments if kind != _MODEL else [options.what, *options.arguments]
    module = import_module(f"{__package__}.bench_{kind}")
    return int(module.run(_parser(kind, module).parse_args(arguments)) or 0)


def _parser(kind: str, module: ModuleType) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="secagg bench" if kind == _MODEL else f"secagg bench {kind}",
        description=cleandoc(module.add_arguments.__doc__),
        epilog="example:\n  {}\n".format(module.EXAMPLE.replace("\n", "\n  ")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser
