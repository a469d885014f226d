"""A site's side: the global model comes out of what the server hands out, and only ciphertext leaves."""

import numpy as np

from secagg.errors import ConfigError, IdentityError, LayoutError
from secagg.site import Follower

from . import framework as nvflare
from .common import FINAL, STATE, STORED, UPDATE, find_kit, job_folder, unpack


class SecAggDecryptor(nvflare.Filter):
    """Makes the global model of what the server hands out. It must be the first filter of task data.

    NVFlare fails a task whose filter raises an error: the script does not see it, and nothing of the site's is sent.
    """

    def process(self, shareable: nvflare.Shareable, fl_ctx: nvflare.FLContext) -> nvflare.Shareable:
        """Return the task with the global model in the clear, and the federation's means of metrics."""
        _check_order(fl_ctx)
        handout, first, stores = unpack(nvflare.from_shareable(shareable).data)
        follower = _follower(fl_ctx)
        model = follower.receive(handout, first)
        fl_ctx.set_prop("secagg.wanted", (handout.metrics, stores == follower.name), private=True, sticky=True)
        dxo = nvflare.DXO(nvflare.DataKind.WEIGHTS, model, {nvflare.MetaKey.INITIAL_METRICS: follower.means})
        return dxo.update_shareable(shareable)


class SecAggEncryptor(nvflare.Filter):
    """Encrypts what was trained; the number of steps becomes the private weight. It must be the last filter of results.

    Nothing passes but what is made here. NVFlare drops a result whose filter raises an error, and sends a code instead.
    """

    def process(self, shareable: nvflare.Shareable, fl_ctx: nvflare.FLContext) -> nvflare.Shareable:
        """Return a new result that holds the encrypted update."""
        _check_order(fl_ctx)
        if (code := shareable.get_return_code()) != nvflare.ReturnCode.OK:
            return nvflare.make_reply(code)
        if fl_ctx.get_prop(nvflare.FLContextKey.TASK_NAME) == FINAL:
            return nvflare.DXO(nvflare.DataKind.METRICS, {"kept": 1}).to_shareable()
        result, follower = nvflare.from_shareable(shareable), _follower(fl_ctx)
        if result.data_kind != nvflare.DataKind.WEIGHTS or not result.data:
            raise LayoutError(
                f"{len(result.data)} tensors of {result.data_kind} came; send a whole model, of the job's framework"
            )
        if (weight := result.get_meta_prop(nvflare.MetaKey.NUM_STEPS_CURRENT_ROUND)) is None:
            raise ConfigError("the result has no weight; send FLModel(…, meta={'NUM_STEPS_CURRENT_ROUND': steps})")
        given = result.get_meta_prop(nvflare.MetaKey.INITIAL_METRICS) or {}
        metrics, stores = fl_ctx.get_prop("secagg.wanted")
        reply = {UPDATE: follower.encrypt(result.data, weight, {key: given[key] for key in metrics if key in given})}
        if stores:
            reply[STORED] = follower.stored()
        follower.save(job_folder(fl_ctx) / STATE)
        return nvflare.DXO(nvflare.DataKind.WEIGHTS, reply).to_shareable()


class SecAggFinal(nvflare.Executor):
    """Keeps the last global model: ``global_model.npz`` in the site's folder of the job."""

    def execute(self, task: str, shareable: nvflare.Shareable, fl_ctx: nvflare.FLContext, _: object) -> object:
        """Write what `SecAggDecryptor` has made of the task."""
        np.savez(job_folder(fl_ctx) / "global_model.npz", **nvflare.from_shareable(shareable).data)
        return nvflare.make_reply(nvflare.ReturnCode.OK)


def _follower(fl_ctx: nvflare.FLContext) -> Follower:
    """Return the one of this process; its state is in a file, for the simulator may make a process a task."""
    found: Follower | None = fl_ctx.get_prop("secagg.follower")
    if found is None:
        name, state = fl_ctx.get_identity_name(), job_folder(fl_ctx) / STATE
        found = Follower(find_kit(fl_ctx, name), state.read_bytes() if state.exists() else b"")
        if found.name != name:
            raise IdentityError(f"{find_kit(fl_ctx, name)} is the kit of {found.name!r}, not of {name!r}")
        fl_ctx.set_prop("secagg.follower", found, private=True, sticky=True)
    return found


def _check_order(fl_ctx: nvflare.FLContext) -> None:
    """Refuse other filters between ours and the network, and a job that lacks one of ours."""
    runner, task = (fl_ctx.get_prop(key) for key in (nvflare.FLContextKey.RUNNER, nvflare.FLContextKey.TASK_NAME))
    ways = {"task_data_filters": nvflare.FilterKey.IN, "task_result_filters": nvflare.FilterKey.OUT}
    data, results = (nvflare.get_filters(of, fl_ctx, getattr(runner, of), task, way) for of, way in ways.items())
    if not data or not results or type(data[0]) is not SecAggDecryptor or type(results[-1]) is not SecAggEncryptor:
        raise ConfigError(
            f"filters of {task}: {data}, {results}; SecAggDecryptor must be the first, SecAggEncryptor the last of all"
        )
