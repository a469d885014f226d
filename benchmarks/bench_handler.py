"""What SecAggHandler costs a MONAI trainer: nothing at a step, and an encryption at the end of a round.

On the CPU, by one thread, and by ``-m gpu`` on a GPU. The network is SegResNet with 4,700,914 parameters, on patches of
16³ voxels; a round of eight steps is a short one, so that encryption is told in milliseconds beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import pytest
import torch
from devices import DEVICES
from ignite.engine import Engine, Events
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss
from monai.networks.nets import SegResNet
from report import TARGETS, Target

import secagg
from secagg.integrations.monai import SecAggHandler
from secagg.site import GlobalModel

STEPS, EDGE = 8, 16
BACKENDS = ("tenseal", "seal-bgv-16", "flashe-16")

TARGETS["handler-step"] = Target("training step with SecAggHandler, CPU", 1.05, "× without")
TARGETS["handler-step-gpu"] = Target("… GPU", 1.05, "× without")


class Site:
    """A network with its trainer, which times its steps, and a handler or none."""

    def __init__(self, device: str, model: Callable[[torch.nn.Module], GlobalModel] | None = None) -> None:
        torch.manual_seed(0)
        self.device = torch.device(device)
        network = SegResNet(init_filters=16, out_channels=2).to(self.device)
        draw = torch.Generator().manual_seed(0)
        shape = (1, EDGE, EDGE, EDGE)
        data = [
            {"image": torch.randn(shape, generator=draw), "label": torch.randint(2, shape, generator=draw)}
            for _ in range(STEPS)
        ]
        self.handler = None if model is None else SecAggHandler(model(network), weight=1)
        self.trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=1,
            train_data_loader=DataLoader(Dataset(data), batch_size=1),
            network=network,
            optimizer=torch.optim.Adam(network.parameters(), 1e-4),
            loss_function=DiceCELoss(to_onehot_y=True, softmax=True),
            train_handlers=[] if self.handler is None else [self.handler],
        )
        self.trainer.add_event_handler(Events.GET_BATCH_STARTED, self._begin)
        self.trainer.add_event_handler(Events.ITERATION_COMPLETED, self._end)
        # Of this process's CPU, which other programs disturb less; on a GPU it waits.
        self.clock = time.process_time if device == "cpu" else time.perf_counter
        self.steps: list[float] = []

    def run(self) -> list[float]:
        """Train a round, and return the seconds of its steps."""
        self.steps = []
        self.trainer.run()
        return self.steps

    def at_iterations(self) -> int:
        """Number of handlers that a step calls."""
        return sum(len(self.trainer._event_handlers[event]) for event in Events if "ITERATION" in event.name)

    def _begin(self) -> None:
        self.started = self.clock()

    def _end(self, engine: Engine) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        self.steps.append(self.clock() - self.started)


@pytest.fixture(autouse=True)
def one_thread():
    """Several wait for each other, where other programs run beside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def global_model(configure, make_keys):
    """``global_model(backend)(network)``: the global model of a site."""

    def of(backend: str) -> Callable[[torch.nn.Module], GlobalModel]:
        site = secagg.Client(configure(backend), make_keys(backend).client, "site-1")
        return lambda network: GlobalModel(site, network)

    return of


@pytest.mark.parametrize("device", DEVICES)
def test_step(device, global_model, benchmark, report):
    """Rounds with and without take turns; the first step of each, which checks the network once, is told beside."""
    with_handler, without = Site(device, global_model("flashe-16")), Site(device)
    ours, bare, ratios = [], [], []

    def turn() -> None:
        first = len(ours) % 2
        for site in (with_handler, without)[:: -1 if first else 1]:
            (ours if site is with_handler else bare).append(site.run())
        ratios.append(median(ours[-1][1:]) / median(bare[-1][1:]))

    benchmark.pedantic(turn, rounds=10, warmup_rounds=1)
    assert with_handler.at_iterations() == without.at_iterations()
    del ours[0], bare[0], ratios[0]
    step, plain = (median(seconds for run in runs for seconds in run[1:]) for runs in (ours, bare))
    first, first_plain = (median(run[0] for run in runs) for runs in (ours, bare))
    ratio = median(ratios)
    benchmark.extra_info.update(device=device, step_seconds=step, bare_seconds=plain, ratio=ratio, ratios=ratios)
    benchmark.extra_info.update(first_step_seconds=first, bare_first_step_seconds=first_plain)
    detail = f"{1e3 * step:.1f} / {1e3 * plain:.1f} ms, {len(ratios)} pairs of rounds; first step of a round "
    detail += f"{1e3 * first:.0f} / {1e3 * first_plain:.0f} ms"
    report.measure("handler-step" if device == "cpu" else "handler-step-gpu", ratio, detail)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_encrypt(backend, device, global_model, benchmark, message, progress, configure, make_keys):
    """The mean of what this site and an idle one send is then loaded."""
    site = Site(device, global_model(backend))
    encrypting, training = [], []

    def round() -> None:
        start = time.perf_counter()
        site.run()
        encrypting.append(site.handler.encrypt_seconds)
        training.append(time.perf_counter() - start - encrypting[-1])

    benchmark.pedantic(round, rounds=3, warmup_rounds=1)
    message(site.handler.update)
    encrypt, train = median(encrypting[1:]), median(training[1:])
    benchmark.extra_info.update(device=device, encrypt_seconds=encrypt, training_seconds=train, steps=STEPS)
    progress(f"{1e3 * encrypt:.0f} ms after {STEPS} steps in {1e3 * train:.0f} ms;")

    config, keys, model = configure(backend), make_keys(backend), site.handler.model
    idle = GlobalModel(secagg.Client(config, keys.client, "site-2"), model.state)
    aggregator = secagg.Aggregator(config, keys.server)
    for update in (site.handler.update, idle.encrypt(idle.state, 1)):
        aggregator.add(update)
    before = site.trainer.network.convInit.conv.weight.clone()
    site.handler.apply(aggregator.finish())
    assert model.differs(site.trainer.network) is None
    assert not torch.equal(site.trainer.network.convInit.conv.weight, before)
