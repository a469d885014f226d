"""A site's side of a federation, whatever carries its messages.

=======================  =====================================================================
`GlobalModel`            the federated loop without a framework
`network_state`          the tensors of a network without its wrappers; `load_network` copies them into it
`Follower`               keeps a global model in step, where a framework carries the messages
`Session`                joins, uploads, downloads; waits and retries until its deadline
`Link`                   what a transport carries for it
`Joined`, `Uploaded`     what the server answers, checked
`Participant`            keeps a global model in step with a federation, in the folder of a kit
`Reporter`               is told what happens; `SiteRecord` says it of a round
`Task`, `run_task`       what a site trains, and all of its part in a federation; `take_part` is the rounds alone
`train_rounds`           those rounds for a training loop that is there already
=======================  =====================================================================
"""

from .follower import Follower
from .global_model import GlobalModel
from .link import Link
from .loop import take_part
from .network import load_network, network_state
from .participant import Participant
from .record import SiteRecord
from .replies import Joined, Uploaded
from .reporter import Reporter
from .running import run_task
from .session import Session
from .task import Task
from .training import train_rounds

__all__ = [
    "Follower",
    "GlobalModel",
    "Joined",
    "Link",
    "Participant",
    "Reporter",
    "Session",
    "SiteRecord",
    "Task",
    "Uploaded",
    "load_network",
    "network_state",
    "run_task",
    "take_part",
    "train_rounds",
]
