"""Without its HE library a backend says what to install, and everything that needs none works on."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import EntryPoint

import numpy as np
import pytest
from container import Container
from federation import VARIANTS, federate, random_states

import secagg
from secagg.backends import registry
from secagg.errors import BackendUnavailableError, ConfigError
from secagg.scheme import plugins

#: Runs in a Python in which the modules named on the command line cannot be imported.
PRELUDE = """
import json, sys, warnings
for name in sys.argv[1].split(","):
    sys.modules[name] = None
folder = sys.argv[2]
import secagg
from secagg.errors import BackendUnavailableError, PrivacyWarning
warnings.simplefilter("ignore", PrivacyWarning)
with open(f"{folder}/config.json") as file:
    config = secagg.Config.from_dict(json.load(file))
"""
ALL = "tenseal,Pyfhel,zstandard,seal,torch"
LIBRARY = {lib: registry.load_backend(lib).module for lib in secagg.available_backends()}
#: What the core itself needs is never missing.
NEEDED = "cryptography"

#: Each backend under its first scheme: what depends on the library alone runs once for it.
each_library = pytest.mark.parametrize("lib", sorted(LIBRARY))


@pytest.fixture
def folder(lib, tmp_path):
    """A federation on the disk."""
    federation = federate(lib)
    (tmp_path / "config.json").write_text(json.dumps(federation.config.to_dict()))
    federation.keys.client.save(tmp_path / "client.key")
    federation.keys.server.save(tmp_path / "server.key")
    return tmp_path


def run_without(modules, folder, code):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PRELUDE + code, modules, str(folder)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_aggregator_needs_no_library(lib, folder):
    """The sum that it makes is the one that it makes beside the libraries, to the bit."""
    federation = federate(lib)
    states = random_states(2, {"w": (1500,)})
    for site, state in zip(federation.sites(2), states, strict=True):
        site.encrypt_to(folder / f"{site.name}.secagg", state)
    run_without(
        f"{ALL},cryptography",
        folder,
        """
aggregator = secagg.Aggregator(config, secagg.load_key(f"{folder}/server.key"))
for name in ("site-1", "site-2"):
    with secagg.Update.open(f"{folder}/{name}.secagg") as update:
        aggregator.add(update)
aggregator.finish().save(f"{folder}/aggregate.secagg")
assert not {"tenseal", "Pyfhel", "seal", "cryptography"} & {name for name, module in sys.modules.items() if module}
""",
    )
    with secagg.Update.open(folder / "aggregate.secagg") as aggregate:
        federation.assert_mean(federation.site().decrypt(aggregate), states)
    updates = [secagg.Update.from_bytes((folder / f"site-{number}.secagg").read_bytes()) for number in (1, 2)]
    assert Container.read(federation.add(updates).to_bytes()).payloads == (
        Container.read((folder / "aggregate.secagg").read_bytes()).payloads
    )


@each_library
def test_a_backend_names_the_extra_to_install(lib, folder):
    output = run_without(
        LIBRARY[lib],
        folder,
        """
info = secagg.available_backends()[config.lib]
assert info.available is False and info.version is None
print(*info.schemes)
print(info.problem)
for attempt in (
    lambda: secagg.generate_keys(config),
    lambda: secagg.Client(config, secagg.load_key(f"{folder}/client.key"), "site"),
):
    try:
        attempt()
    except BackendUnavailableError as error:
        print(error)
""",
    )
    schemes, *lines = output.splitlines()
    assert schemes.split() == [scheme for its, scheme in VARIANTS.values() if its == lib]
    assert len(lines) == 3
    assert all(line.startswith(f"backend '{lib}' needs the library {LIBRARY[lib]}") for line in lines)
    assert all(f"pip install 'secagg[{lib}]'" in line for line in lines)


@each_library
def test_a_backend_works_on_without_the_others(lib, folder):
    output = run_without(
        ",".join(set(LIBRARY.values()) - {LIBRARY[lib], NEEDED}),
        folder,
        """
import numpy as np
print([name for name, info in secagg.available_backends().items() if info.available])
site = secagg.Client(config, secagg.load_key(f"{folder}/client.key"), "site")
print(site.encrypt({"w": np.ones(3)}).header.site)
""",
    )
    left = [name for name, module in sorted(LIBRARY.items()) if module in (LIBRARY[lib], NEEDED)]
    assert output.splitlines() == [str(left), "site"]


@pytest.mark.parametrize("lib", ["tenseal"])
def test_tenseal_without_zstandard(folder):
    """The extra brings both: missing either, the backend is not available."""
    code = """
print(secagg.available_backends()["tenseal"].available)
for attempt in (
    lambda: secagg.generate_keys(config),
    lambda: secagg.Client(config, secagg.load_key(f"{folder}/client.key"), "site"),
):
    try:
        attempt()
    except BackendUnavailableError as error:
        print("secagg[tenseal]" in str(error))
"""
    assert run_without("zstandard", folder, code).split() == ["False", "True", "True"]


def test_importing_secagg_loads_numpy_only():
    code = """
import sys
before = set(sys.modules)
import secagg
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(packages - sys.stdlib_module_names - {"cython_runtime"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [name for name in done.stdout.split() if not name.startswith("_cython")] == ["numpy", "secagg", "secagg_ext"]


def test_what_is_registered_but_cannot_be_loaded(monkeypatch):
    """A broken plug-in is reported; it does not take the others down."""
    points = dict(registry.registered_backends())
    points["broken"] = EntryPoint("broken", "no_such_package.backend:Backend", "secagg.backends")
    points["wrong"] = EntryPoint("wrong", "numpy:ndarray", "secagg.backends")
    for module in (registry, plugins):
        monkeypatch.setattr(module, "registered_backends", lambda: points)
    found = secagg.available_backends()
    assert all(found[lib].available for lib in LIBRARY)
    assert not found["broken"].available
    assert "no_such_package" in found["broken"].problem
    assert not found["wrong"].available
    assert "no secagg.backends.base.Backend" in found["wrong"].problem
    with pytest.raises(BackendUnavailableError, match="no_such_package"):
        registry.load_backend("broken")
    with pytest.raises(ConfigError, match="is no secagg"):
        registry.load_backend("wrong")
    with pytest.raises(ConfigError, match=f"'absent'; the registered backends are {', '.join(points)}"):
        registry.load_backend("absent")


@each_library
def test_numpy_arrays_need_no_torch(lib, folder):
    federation = federate(lib)
    states = [{"w": np.full(3, 0.5, np.float32)}] * 2
    federation.sum(states).save(folder / "aggregate.secagg")
    output = run_without(
        "torch",
        folder,
        """
import numpy as np
site = secagg.Client(config, secagg.load_key(f"{folder}/client.key"), "site")
with secagg.Update.open(f"{folder}/aggregate.secagg") as aggregate:
    mean = site.decrypt(aggregate, like={"w": np.zeros(3, np.float32)})
print(mean["w"].round(1).tolist())
""",
    )
    assert output.strip() == "[0.5, 0.5, 0.5]"
