"""The arguments of functions are read once, and no function is kept alive for that."""

from __future__ import annotations

import gc
import weakref

from bucketflow_celery.config.arguments import arguments_of


class Job:
    __slots__ = ()  # its objects cannot be referenced weakly

    def run(self, account, /, order, *more, size=1, **options):
        return account, order, more, size, options

    def __call__(self, account):
        return account


def test_positions_are_those_of_the_arguments_that_may_be_positional():
    method, function = arguments_of(Job().run), arguments_of(Job.run)
    assert method.positions == {"account": 0, "order": 1}
    assert function.positions == {"self": 0, "account": 1, "order": 2}
    assert list(method.signature.parameters) == ["account", "order", "more", "size", "options"]


def test_a_function_that_takes_any_keyword_accepts_any_name():
    assert arguments_of(Job().run).accepts("region")
    assert arguments_of(Job()).accepts("account")
    assert not arguments_of(Job()).accepts("region")


def test_the_arguments_of_a_function_are_read_once():
    def function(account):
        return account

    assert arguments_of(function) is arguments_of(function)
    assert arguments_of(Job().run) is arguments_of(Job().run)


def test_a_function_is_not_kept_alive():
    def function(account):
        return account

    arguments_of(function)
    gone = weakref.ref(function)
    del function
    gc.collect()
    assert gone() is None
