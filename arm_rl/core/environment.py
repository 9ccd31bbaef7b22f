"""OmegaConf's way to environment variables, `${oc.env:NAME}`, replaced where the variables must be refused or recorded.

Interpolations nest (`${oc.${name}:KEY}`) and quote (`${oc.env:'KEY'}`): only the resolver sees every way to a variable.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import OmegaConf
from omegaconf.resolvers import oc

_NAME = "oc.env"
_lock = threading.RLock()


@contextmanager
def variables_read_by(read: Callable[..., Any]) -> Iterator[None]:
    """Let a function resolve environment variables in the context.

    Args:
        read: Takes the name of a variable and, if the file gives one, the default value.
    """
    with _lock:
        OmegaConf.register_resolver(_NAME, read, replace=True)
        try:
            yield
        finally:
            OmegaConf.register_resolver(_NAME, oc.env, replace=True)
