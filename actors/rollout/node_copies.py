"""Files of the weights on nodes that have engines and not the learners' rank 0: one engine of a node writes the file, all read it."""

import asyncio
from collections import defaultdict

from ray.actor import ActorHandle

from actors.weights.files import PublishedWeights, WeightFile


class NodeCopies:
    """The newest file on each such node."""

    def __init__(self) -> None:
        self._copies: dict[str, tuple[WeightFile, WeightFile]] = {}  # by the node: the learners' file and its copy
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def file(self, published: PublishedWeights, node_id: str, actor: ActorHandle) -> WeightFile:
        """Return the file that an engine loads; wait for the engine that writes the node's copy, or have this one write it.

        Args:
            published: Version to load.
            node_id: Node of the engine.
            actor: The engine's actor.

        Raises:
            RayActorError: If this actor dies while it writes; another engine of the node writes then.
        """
        if published.data is None or node_id == published.node_id:
            return published.file
        async with self._locks[node_id]:
            source, copy = self._copies.get(node_id, (None, None))
            if copy is None or source != published.file:
                copy = await actor.copy_weights.remote(published.file, published.data)
                self._copies[node_id] = published.file, copy
            return copy
