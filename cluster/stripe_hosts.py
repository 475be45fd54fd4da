"""Who tells the hosts of each stripe where those of the others are: the coordinators of all stripes, in one process.

    coordinator of a stripe --connected, lost--> StripeDirectory --StripeHosts--> every host --> its clients

A host learns of the hosts of its own stripe from its store; of the others it knows what it is told. While there is no
coordinator it knows what it was told last, and stripes that somebody speaks to already are found by their own tables.
"""

from __future__ import annotations

from ..sharding.messages import StripeHosts
from .link import Link


class StripeDirectory:
    def __init__(self, stripes: int) -> None:
        self._links: list[dict[Link, None]] = [{} for _ in range(stripes)]
        """By stripe: the coordinators' connections to its hosts."""

    def met(self, stripe: int, link: Link) -> None:
        self._links[stripe][link] = None
        self._tell()

    def lost(self, stripe: int, link: Link) -> None:
        if self._links[stripe].pop(link, self) is None:
            self._tell()

    def _tell(self) -> None:
        if len(self._links) > 1:
            hosts = StripeHosts(tuple(tuple(sorted({link.address for link in links})) for links in self._links))
            for links in self._links:
                for link in links:
                    link.send(hosts)
