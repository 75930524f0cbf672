# SPDX-License-Identifier: Apache-2.0
"""Serves one callback group of a node in a thread of its own, beside the executor that serves the rest of the node.

rclpy's executors look at every entity of their nodes whenever one is ready. A lifecycle node has some thirty, which
costs milliseconds for each image; here it is those of the group alone, and no other callback comes in between.
"""

from __future__ import annotations

import threading
from typing import Any, cast

from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node


class OwnThreadGroup(MutuallyExclusiveCallbackGroup):
    """A callback group that no executor serves but the one of its `GroupExecutor`."""

    def __init__(self) -> None:
        super().__init__()
        self.thread: threading.Thread | None = None

    def can_execute(self, entity: Any) -> bool:
        """Whether the entity may be served, by the thread that asks."""
        return threading.current_thread() is self.thread and super().can_execute(entity)


class GroupExecutor:
    """See the module's docstring. Begin with ``start`` when the group has its entities, end with ``stop``.

    Args:
        node: has the entities.
    """

    def __init__(self, node: Node) -> None:
        self.group = OwnThreadGroup()
        """For the entities to be served."""
        self._node = node
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(cast(Node, _Part(node, self.group)))
        self._stopping = False
        self._thread = threading.Thread(target=self._spin, name="images", daemon=True)

    def start(self) -> None:
        """Begin to serve the group."""
        self.group.thread = self._thread
        self._thread.start()

    def wake(self) -> None:
        """Have the thread look at the group anew, after another one has changed a timer of it."""
        self._executor.wake()

    def stop(self) -> None:
        """Finish the callback in hand, and serve the group no more."""
        self._stopping = True
        self._executor.shutdown(timeout_sec=0)
        if self._thread.is_alive():
            self._thread.join()

    def _spin(self) -> None:
        """A callback that raises is logged, and the others go on."""
        while not self._stopping:
            try:
                self._executor.spin()
            except ExternalShutdownException:
                return
            except Exception as error:
                if not self._stopping:
                    self._node.get_logger().error(f"{type(error).__name__}: {' '.join(str(error).split())}")


class _Part:
    """What an executor wants to know of a node, for one of its callback groups."""

    def __init__(self, node: Node, group: OwnThreadGroup) -> None:
        self._node = node
        self._group = group
        self.executor: Any = None

    subscriptions = property(lambda self: self._of_group(self._node.subscriptions))
    timers = property(lambda self: self._of_group(self._node.timers))
    clients = property(lambda self: self._of_group(self._node.clients))
    services = property(lambda self: self._of_group(self._node.services))
    guards = property(lambda self: self._of_group(self._node.guards))
    waitables = property(lambda self: self._of_group(self._node.waitables))

    def _of_group(self, entities: Any) -> list[Any]:
        return [entity for entity in entities if entity.callback_group is self._group]
