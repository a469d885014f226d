"""Odd arguments and odd places: a typed error, never a native one, and never a wrong result."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from federation import CLARA, LARGE, federate

import secagg
from secagg.errors import ConfigError, FormatError, KeyFileError, LayoutError, RangeError, StorageError
from secagg.scheme.params import CKKSParams, Params

HUGE = 10**5000  # Python refuses to print it


def test_threads_may_share_a_client(lib):
    federation = federate(lib)
    site, rounds = federation.site("site-1"), 3
    values = [0.25, 0.5, 0.75, 1.0]
    updates = {}

    def encrypt(value):
        updates[value] = [site.encrypt({"w": np.full(5000, value)}) for _ in range(rounds)]

    threads = [threading.Thread(target=encrypt, args=(value,)) for value in values]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = federation.site("site-2").encrypt({"w": np.zeros(5000)})
    for value in values:
        for update in updates[value]:
            mean = site.decrypt(federation.add([update, other]))
            np.testing.assert_allclose(mean["w"], value / 2, rtol=0, atol=0.02)


@pytest.mark.parametrize("place", ["missing/x", "."])
def test_places_that_cannot_be_written(lib, tmp_path, place):
    federation = federate(lib)
    update = federation.site().encrypt({"w": np.zeros(3)})
    for write in (
        federation.keys.client.save,
        federation.keys.server.save,
        update.save,
        lambda path: federation.site().encrypt_to(path, {"w": np.zeros(3)}),
    ):
        with pytest.raises(StorageError, match="cannot write"):
            write(tmp_path / place)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path, "a\0b"):
        with pytest.raises(KeyFileError):
            secagg.load_key(path)
        with pytest.raises(FormatError):
            secagg.Update.open(path)


@pytest.mark.parametrize("blob", [None, "text", 10**13, -1, [300]], ids=repr)
def test_what_is_no_bytes(blob):
    with pytest.raises(FormatError, match="an update is bytes, not"):
        secagg.Update.from_bytes(blob)


def test_bytes_that_change_later(lib):
    blob = bytearray(federate(lib).site().encrypt({"w": np.zeros(3)}).to_bytes())
    update = secagg.Update.from_bytes(blob)
    before = bytes(blob)
    blob[-1] ^= 1
    assert update.to_bytes() == before


@pytest.mark.parametrize(
    "value",
    [
        np.ones((1,) * 33, np.float32),
        np.empty((0, 2**41), np.float32),
        torch.nn.LazyLinear(3).weight,
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        np.ma.masked_array([1.0, 5.0, 1.0], mask=[False, True, False]),
    ],
    ids=["33 dimensions", "an extent over the cap", "lazy", "nested", "masked"],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
def test_tensors_that_cannot_be_sent(lib, tmp_path, value):
    site = federate(lib).site()
    with pytest.raises(LayoutError, match="'w'"):
        site.layout({"w": value})
    with pytest.raises(LayoutError, match="'w'"):
        site.encrypt_to(tmp_path / "update", {"w": value})
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_nothing_beside_the_largest(lib):
    with pytest.raises(RangeError, match="is nothing beside|rounds to nothing beside"):
        federate(lib, LARGE, max_weight=1000).site().check_weight(5e-324)


def test_a_weight_of_0_says_how_to_skip_a_round(lib):
    with pytest.raises(RangeError, match=r"weight is 0; .*: a site with nothing to give .* session\.skip\(round\)"):
        federate(lib).site().check_weight(0)


@pytest.mark.parametrize("sign", [1, -1])
def test_numbers_that_python_does_not_print(lib, sign):
    huge = sign * HUGE
    for change in ({"max_clients": huge}, {"max_abs": huge}, {"max_weight": huge}):
        with pytest.raises(ConfigError, match="a number of 16610 bits"):
            federate(lib).config.aggregation.__class__(**change)
    for key in ("poly_modulus_degree", "scale_bits"):
        with pytest.raises(ConfigError, match="a number of 16610 bits"):
            Params.from_dict({**CLARA, key: huge})
    with pytest.raises(ConfigError):
        Params.from_dict({**CLARA, "coeff_mod_bit_sizes": [huge]})
    with pytest.raises(ConfigError, match="round is a number"):
        federate(lib).aggregator(huge)
    with pytest.raises(RangeError, match="weight"):
        federate(lib).site().check_weight(huge)


@pytest.mark.parametrize("sizes", [5, None, "60"])
def test_params_by_hand(sizes):
    with pytest.raises(ConfigError, match="coeff_mod_bit_sizes is"):
        CKKSParams(8192, sizes, 40)
    assert CKKSParams(8192, [60, 40, 40], 40) == CKKSParams(8192, (60, 40, 40), 40)


@pytest.mark.parametrize("text", ["[" * 20_000, "a: &a [*a]", "he: &a {lib: *a}"], ids=["deep", "loop", "loop in he"])
def test_yaml_without_an_end(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError):
        secagg.Config.load(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"state_dict": {"w": np.zeros(3)}}, "give the state dict in it, checkpoint['state_dict']"),
        (
            {"epoch": [3], "optimizer": {"state": {}}, "net": {"w": torch.zeros(3)}},
            "give the state dict in it, checkpoint['net']",
        ),
        ({"w": np.zeros(3), "optimizer": {"lr": 0.1}}, "give the state dict in it, checkpoint['optimizer']"),
        ({"w": np.zeros(3), "epoch": [3]}, "or keep it at the site: stay: ['epoch'] in the configuration"),
    ],
)
def test_a_checkpoint_is_no_state_dict(state, message):
    with pytest.raises(LayoutError) as caught:
        federate("flashe").site().layout(state)
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize("text", ["he:\n  lib: seal\n" + 100 * "# more\n", '{"he": {"preset": "exact"}}'])
def test_the_text_of_a_configuration_is_no_path(text):
    with pytest.raises(
        ConfigError, match=r"^this is the text of the YAML file, and no path: give it as bytes"
    ) as caught:
        secagg.Config.load(text)
    assert len(str(caught.value)) < 250


def test_a_path_with_a_line_break_is_one(tmp_path):
    path = tmp_path / "a\nb.yaml"
    path.write_text("he: {preset: exact}")
    assert secagg.Config.load(str(path)).lib == "seal"


def test_contents_in_an_array(lib):
    blob = np.frombuffer(federate(lib).site().encrypt({"w": np.zeros(3)}).to_bytes(), np.uint8)
    with pytest.raises(FormatError, match=r"an update is bytes, not ndarray: give its .tobytes\(\)$"):
        secagg.Update.from_bytes(blob)
    secagg.Update.from_bytes(blob.tobytes())
