"""The recipe: encrypted FedAvg as a job."""

from collections.abc import Sequence
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import numpy as np

from secagg.site import network_state

from . import framework as nvflare
from .common import FINAL
from .filters import SecAggDecryptor, SecAggEncryptor, SecAggFinal
from .server import SecAggAggregator, SecAggFedAvg, SecAggPersistor


class SecAggFedAvgRecipe(nvflare.Recipe):
    """Encrypted FedAvg of a training script, in which all clients train in each round: in the simulator, POC and all.

    `model` is the first global model, a network or a mapping of names to tensors, or its path on the server; `metrics`
    are the script's metrics that travel, encrypted too. The others are as of NVFlare's recipes and ``ScriptRunner``.
    """

    def __init__(
        self,
        *,
        name: str = "fedavg_secagg",
        model: Any,
        min_clients: int,
        num_rounds: int = 2,
        train_script: str,
        train_args: str = "",
        framework: nvflare.FrameworkType = nvflare.FrameworkType.PYTORCH,
        metrics: Sequence[str] | None = None,
        **script: Any,
    ) -> None:
        job = nvflare.FedJob(name=name, min_clients=min_clients)
        job.set_app_packages(["secagg"])  # no copy of its source travels, and shadows what is installed
        if not isinstance(model, (str, Path)):
            file, state = Path(mkdtemp(), "first.npz"), network_state(model) if hasattr(model, "to") else model
            finalize(self, rmtree, file.parent)  # when the job has been exported
            np.savez(file, **dict[str, Any]({key: np.asarray(value) for key, value in state.items()}))
            job.add_file_to_server(str(file), app_folder_type="config")
            model = file.name
        train = nvflare.AppConstants.TASK_TRAIN  # the script gets no other task: others would have no filters
        every = {"num_clients": 0, "ignore_result_error": True}  # all; the aggregator says whether enough have come
        job.to_server(SecAggPersistor(str(model), metrics), id=nvflare.AppConstants.DEFAULT_PERSISTOR_ID)
        job.to_server(SecAggFedAvg(num_rounds=num_rounds, aggregator=SecAggAggregator(), **every))
        job.to_clients(nvflare.ScriptRunner(train_script, train_args, framework=framework, **script), tasks=[train])
        job.to_clients(SecAggFinal(), tasks=[FINAL])
        job.to_clients(SecAggDecryptor(), filter_type=nvflare.FilterType.TASK_DATA, tasks=[train, FINAL])
        job.to_clients(SecAggEncryptor(), filter_type=nvflare.FilterType.TASK_RESULT, tasks=[train, FINAL])
        super().__init__(job)
