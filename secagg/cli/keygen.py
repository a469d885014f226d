"""``secagg keygen``: everything that the parties of a federation need, once."""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from ..config import Config
from ..errors import ConfigError, KeyFileError
from ..header import check_site
from ..keygen import generate_keys
from .kit import CLIENT_KEY_FILE, CONFIG_FILE, SERVER_KEY_FILE

_MAX_DAYS = 36_500

EXAMPLE = """secagg keygen federation.yaml --out kits --sites site-1 site-2 site-3 --host fl.example.org
secagg keygen federation.yaml --out kits-2 --sites site-1 site-2 --epoch 1"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Make HE keys and TLS certificates, a kit for the server and one for each site."""
    parser.add_argument("config", type=Path, help="the federation's configuration (YAML)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder for the kits; must be new")
    parser.add_argument("--sites", nargs="+", required=True, metavar="NAME", help="names of the sites")
    parser.add_argument("--host", nargs="*", default=[], metavar="HOST", help="names and addresses of the server")
    parser.add_argument(
        "--epoch", type=int, default=0, metavar="N", help="counts the federation's HE keys (default: 0, the first)"
    )
    parser.add_argument("--days", type=int, default=365, help="validity of the certificates (default: 365)")


def run(options: argparse.Namespace) -> None:
    """Make the kits and say what to do with them."""
    config = Config.load(options.config)
    make_kits(config, options.out, options.sites, options.host, options.days, options.epoch)
    print(f"kits of {len(options.sites)} sites and the server, epoch {options.epoch}, are in {options.out}:")
    for name in ("server", *options.sites):
        secret = "no HE secret" if name == "server" else "client.key decrypts every update: keep it from the server"
        print(f"  {options.out / name}  ({secret})")
    print(f"keep {options.out / 'ca.key'} off all of these machines; it issues certificates for sites that join later")


def make_kits(config: Config, out: Path, sites: list[str], hosts: list[str], days: int = 365, epoch: int = 0) -> None:
    """Generate keys and certificates, and write a folder for the server and one for each site.

    Raises
    ------
    ConfigError
        If a name is invalid, given twice, or ``server``, or a number is out of range.
    KeyFileError
        If `out` exists already: kits are never overwritten.
    """
    from ..integrations.grpc import Authority

    for site in sites:
        check_site(site)
    if len({*sites, "server"}) != len(sites) + 1:
        raise ConfigError(f"the names {', '.join(sites)} must be distinct, and none of them 'server'")
    if not 1 <= days <= _MAX_DAYS:
        raise ConfigError(f"--days is {days}; certificates are valid for 1 to {_MAX_DAYS} days")
    if out.exists():
        raise KeyFileError(f"{out} exists; name a new folder, kits are never overwritten")
    keys = generate_keys(config, epoch)
    text = yaml.safe_dump(config.to_dict(), sort_keys=False, default_flow_style=None)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as room:  # made with 0o700
            kits = Path(room, "kits")
            kits.mkdir()
            authority = Authority.create(kits, days=days)
            authority.issue_server(hosts, days=days)
            for name in sites:
                authority.issue_site(name, days=days)
                keys.client.save(kits / name / CLIENT_KEY_FILE)
            keys.server.save(kits / "server" / SERVER_KEY_FILE)
            for name in ("server", *sites):
                (kits / name / CONFIG_FILE).write_text(text, encoding="utf-8")
            kits.rename(out)
    except OSError as error:
        raise KeyFileError(f"cannot make {out}: {error.strerror}") from error
