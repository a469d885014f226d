"""What surrounds the calls: errors on the wire, stubs, imports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2

from secagg import errors
from secagg.integrations import grpc as package
from secagg.integrations.grpc import secagg_pb2 as pb
from secagg.integrations.grpc.refusals import abort, details, error_of
from secagg.protocol import Refusal
from secagg.protocol.refusals import MAX_MESSAGE_LENGTH

TYPES = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.SecAggError)
    and kind not in (errors.DecryptionError, errors.EpochError)
]


@pytest.fixture(scope="module")
def channel() -> Iterator[grpc.Channel]:
    """A server that answers each call with the error, or the status, that it asks for."""

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        name, _, message = request.decode().partition(":")
        if name == "raw":
            context.set_trailing_metadata((("secagg-error", message),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "from afar")
        abort(context, Refusal.of(getattr(errors, name)(message)))

    server = grpc.server(ThreadPoolExecutor(1))
    handler = grpc.unary_unary_rpc_method_handler(answer)
    server.add_registered_method_handlers("test", {"call": handler})
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test", {"call": handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    server.stop(None).wait()


def call(channel: grpc.Channel, request: str) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/test/call")(request.encode(), timeout=120.0, wait_for_ready=True)
    return caught.value


@pytest.mark.parametrize("kind", TYPES)
def test_every_error_arrives_as_it_left(channel: grpc.Channel, kind: type[errors.SecAggError]) -> None:
    failed = call(channel, f"{kind.__name__}:σ is 3 % too large;\nlower it")
    error = error_of(failed)
    assert type(error) is kind
    assert str(error) == r"σ is 3 % too large;\nlower it"  # one line, whatever the other side says
    assert failed.code() not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)


def test_a_long_message_is_cut(channel: grpc.Channel) -> None:
    error = error_of(call(channel, "FormatError:" + "x" * 100_000))
    assert type(error) is errors.FormatError
    assert str(error) == "x" * MAX_MESSAGE_LENGTH


@pytest.mark.parametrize(
    "name", ["", "ValueError", "annotations", "__name__", "os.system", "DecryptionError", "EpochError"]
)
def test_only_errors_of_secagg_are_raised(channel: grpc.Channel, name: str) -> None:
    failed = call(channel, f"raw:{name}")
    assert error_of(failed) is None
    assert details(failed) == "from afar (UNAVAILABLE)"


def test_stubs_fit_the_proto(tmp_path: Path) -> None:
    root = Path(package.__file__).resolve().parents[2]
    # In a process of its own: the compiler brings a second copy of what grpc is linked with.
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"--descriptor_set_out={tmp_path / 'set'}"]
    subprocess.run([*command, "secagg/integrations/grpc/secagg.proto"], check=True, timeout=240)
    [expected] = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "set").read_bytes()).file
    generated = descriptor_pb2.FileDescriptorProto.FromString(pb.DESCRIPTOR.serialized_pb)
    expected.ClearField("source_code_info")
    for descriptor in (expected, generated):
        for message in descriptor.message_type:
            for field in message.field:
                field.ClearField("json_name")
    assert generated == expected, "run make proto"


def test_the_package_loads_grpc_when_it_is_used() -> None:
    code = (
        "import sys, secagg.integrations.grpc as g; "
        "assert not {'grpc', 'google.protobuf', 'cryptography'} & sys.modules.keys(); "
        "names = [getattr(g, name) for name in g.__all__]; "
        "assert 'grpc' in sys.modules; "
        "assert not {'tenseal', 'Pyfhel', 'torch'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=240)


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="Sever"):
        _ = package.Sever
