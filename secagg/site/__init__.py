"""A site's side of a federation, whatever carries its messages.

=======================  =====================================================================
`Session`                joins, uploads, downloads; waits and retries until its deadline
`Link`                   what a transport carries for it
`Joined`, `Uploaded`     what the server answers, checked
=======================  =====================================================================
"""

from .link import Link
from .replies import Joined, Uploaded
from .session import Session

__all__ = ["Joined", "Link", "Session", "Uploaded"]
