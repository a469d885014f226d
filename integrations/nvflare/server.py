"""The server's components: they add what they cannot read, and hand out what the sites need for the next round."""

from collections.abc import Sequence
from pathlib import Path

from secagg import Update
from secagg.errors import FormatError, IdentityError
from secagg.server import Relay
from secagg.setup import read_state

from . import framework as nvflare
from .common import FINAL, STORED, UPDATE, find_kit, job_folder, pack


class SecAggPersistor(nvflare.ModelPersistor):
    """Loads the first global model, which all sites get in the clear; saves ciphertext. Its id must be ``persistor``.

    `model` is the path of the former, in the job's config folder if relative; `metrics` names those that travel too.
    """

    def __init__(self, model: str, metrics: Sequence[str] | None = None) -> None:
        super().__init__()
        self.model, self.metrics = model, metrics

    def load_model(self, fl_ctx: nvflare.FLContext) -> nvflare.ModelLearnable:
        """Begin a run, and return its first handout; whatever is raised ends the job."""
        folder = fl_ctx.get_workspace().get_app_config_dir(fl_ctx.get_job_id())
        self.first = read_state(Path(folder, self.model))
        self.relay = Relay(find_kit(fl_ctx, "server"), self.first, metrics=self.metrics)
        return nvflare.make_model_learnable(pack(self.relay.handout(None), self.first, ""), {})

    def save_model(self, model: nvflare.ModelLearnable, fl_ctx: nvflare.FLContext) -> None:
        """Save the aggregate of the round, and the global model that a site has stored, if one has."""
        handout, folder = self.relay.handout(None), job_folder(fl_ctx)
        (folder / f"aggregate-{handout.round - 1}.secagg").write_bytes(handout.aggregates[-1])
        if handout.model:
            (folder / "model.secagg").write_bytes(handout.model)


class SecAggAggregator(nvflare.ModelAggregator):
    """Adds results as they come. One that is refused is left out; with fewer than ``min_clients`` the job fails."""

    _stores = ""

    def accept_model(self, model: nvflare.FLModel) -> None:
        """Verify a result as a whole, then add it; NVFlare logs what is raised, and goes on with the others."""
        client, params = model.meta["client_name"], model.params
        if UPDATE not in params or params.keys() - {UPDATE, STORED}:
            raise FormatError(f"{client} has sent something else than its encrypted update; it needs SecAggEncryptor")
        if (signer := Update.from_bytes(params[UPDATE]).header.site) != client:
            raise IdentityError(f"{client} has sent an update of {signer!r}")
        persistor = self.fl_ctx.get_engine().get_component(nvflare.AppConstants.DEFAULT_PERSISTOR_ID)
        persistor.relay.add(params[UPDATE], params.get(STORED, b"") if client == self._stores else b"")

    def aggregate_model(self) -> nvflare.FLModel:
        """End the round; return what is new, or all that there is if a client was not in the round."""
        engine = self.fl_ctx.get_engine()
        persistor = engine.get_component(nvflare.AppConstants.DEFAULT_PERSISTOR_ID)
        relay, sites, done = persistor.relay, persistor.relay.sites, persistor.relay.round
        relay.finish()
        missed = {client.name for client in engine.get_clients()} - set(sites)
        handout = relay.handout(None if missed else done, store=relay.wants_model)
        self._stores = sites[0] if handout.store else ""
        return nvflare.FLModel(nvflare.ParamsType.FULL, pack(handout, persistor.first, self._stores))

    def reset_stats(self) -> None:
        """Do nothing: `aggregate_model` has begun the next round."""


class SecAggFedAvg(nvflare.FedAvg):
    """FedAvg that hands out the last global model too: NVFlare's leaves it to the server, which cannot read it."""

    def run(self) -> None:
        """Train all rounds; then each site gets what came out."""
        super().run()
        if not self.abort_signal.triggered:
            params = self.fl_ctx.get_prop(nvflare.AppConstants.GLOBAL_MODEL)[nvflare.ModelLearnableKey.WEIGHTS]
            self.send_model_and_wait(FINAL, nvflare.FLModel(nvflare.ParamsType.FULL, params))
