"""The enforcement point: whose traffic it is, whether it may pass, and how it is cut."""

import importlib.util
import sys
import types

_ADDONS = "mitmproxy.addons"


def _without_all_addons() -> None:
    """Let single addons of mitmproxy be imported without all the others.

    Their package imports each of its forty addons, and with them Flask, LDAP and more: 300 modules, a third
    of a worker's start, which is how long a port is short of one after a crash. Inside mitmdump, which has
    imported them already, nothing changes.
    """
    found = None if _ADDONS in sys.modules else importlib.util.find_spec("mitmproxy")
    if found is not None and found.submodule_search_locations:
        package = types.ModuleType(_ADDONS)
        package.__path__ = [f"{place}/addons" for place in found.submodule_search_locations]
        sys.modules[_ADDONS] = package


_without_all_addons()
