# SPDX-License-Identifier: Apache-2.0
"""The stand-in for message_filters, where the real one is installed too: both must behave alike."""

from __future__ import annotations

import importlib

import pytest
from std_msgs.msg import String

from m3l_ros import filters

try:
    implementations = [filters, importlib.import_module("message_filters")]
except ImportError:
    implementations = [filters]


@pytest.fixture(params=implementations, ids=lambda module: module.__name__)
def module(request):
    return request.param


def test_callbacks_are_called_in_order_with_their_own_arguments(module):
    calls = []
    source = module.SimpleFilter()
    connections = [
        source.registerCallback(lambda *args: calls.append(("first", *args)), "x", 1),
        source.registerCallback(lambda *args: calls.append(("second", *args))),
    ]
    source.signalMessage("a", "b")
    assert connections == [0, 1]
    assert calls == [("first", "a", "b", "x", 1), ("second", "a", "b")]


def test_subscriber_passes_messages_on_until_its_subscription_is_destroyed(module, node, wait_until):
    heard = []
    subscriber = module.Subscriber(node, String, "chatter", qos_profile=5)
    subscriber.registerCallback(lambda message: heard.append(message.data))
    publisher = node.create_publisher(String, "chatter", 5)
    wait_until(publisher.get_subscription_count, "the subscription")
    publisher.publish(String(data="hello"))
    wait_until(lambda: heard == ["hello"], "the message")
    assert subscriber.topic == "chatter"
    node.destroy_subscription(subscriber.sub)
    wait_until(lambda: publisher.get_subscription_count() == 0, "the end of the subscription")
