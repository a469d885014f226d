"""A site's side of a federation, whatever carries its messages.

=======================  =====================================================================
`GlobalModel`            the federated loop without a framework
`Session`                joins, uploads, downloads; waits and retries until its deadline
`Link`                   what a transport carries for it
`Joined`, `Uploaded`     what the server answers, checked
=======================  =====================================================================
"""

from .global_model import GlobalModel
from .link import Link
from .replies import Joined, Uploaded
from .session import Session

__all__ = ["GlobalModel", "Joined", "Link", "Session", "Uploaded"]
