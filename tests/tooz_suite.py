"""A plug-in for pytest with which the tests of tooz run where the drivers of others can't be imported: the tests only
name them, to ask whether it is one of them that is tested.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

DRIVERS = {
    "etcd3gw": "Etcd3Driver", "file": "FileDriver", "ipc": "IPCDriver", "memcached": "MemcachedDriver",
    "redis": "RedisDriver",
}  # fmt: skip

for module, driver in DRIVERS.items():
    name = f"tooz.drivers.{module}"
    try:
        importlib.import_module(name)
    except ImportError:
        stand_in = ModuleType(name)
        setattr(stand_in, driver, type(driver, (), {}))
        sys.modules[name] = stand_in
        setattr(importlib.import_module("tooz.drivers"), module, stand_in)
