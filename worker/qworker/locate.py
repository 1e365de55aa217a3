"""Finds the application that ``-A`` names, by importing it.

    shop            the module's ``app``, else its ``celery``, else the only App in it,
                    else the same in ``shop.app`` and ``shop.celery``
    shop:queue_app  that attribute of the module
    shop.queue_app  the module if there is one, else the attribute ``queue_app`` of ``shop``

Runs in the import process only: importing runs user code.
"""

import importlib
import importlib.util
import sys
from difflib import get_close_matches
from types import ModuleType

import qclient.canvas.builtins  # noqa: F401  # tasks that every worker has
from qclient import App

FALLBACKS = ("app", "celery")
"""Attributes, and then submodules, that are looked at in this order."""


class AppNotFound(Exception):  # noqa: N818 - says what happened
    """There is no application where ``-A`` points. The message says what was found instead."""


def find_app(where: str) -> App:
    """The application at ``where``. Raises AppNotFound; any other exception is the module's own."""
    module_name, colon, attribute = where.partition(":")
    if colon:
        return app_named(import_module(module_name), attribute)
    if exists(module_name):
        return app_in(import_module(module_name))
    parent, dot, attribute = module_name.rpartition(".")
    if dot and exists(parent):
        return app_named(import_module(parent), attribute)
    raise AppNotFound(not_found(module_name))


def exists(name: str) -> bool:
    """Whether a module of that name can be found. Imports the packages above it."""
    if name in sys.modules:
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if error.name and (name + ".").startswith(error.name + "."):
            return False
        raise  # a package above it imports something that is missing


def import_module(name: str) -> ModuleType:
    if not name or not exists(name):
        raise AppNotFound(not_found(name))
    return importlib.import_module(name)


def not_found(name: str) -> str:
    return (
        f"there is no module {name!r} on the path (searched from {sys.path[0] or '.'}); "
        f"start qworker where the module can be imported, or name another with -A"
    )


def app_named(module: ModuleType, attribute: str) -> App:
    """The application that is ``attribute`` of the module, or in the module of that name."""
    found = getattr(module, attribute, None)
    if isinstance(found, App):
        return found
    if isinstance(found, ModuleType):
        return app_in(found)
    apps = sorted(name for name, value in vars(module).items() if isinstance(value, App))
    if found is not None:
        problem = f"{module.__name__}:{attribute} is a {type(found).__name__}, not an App"
    else:
        problem = f"the module {module.__name__} has no {attribute!r}"
        near = get_close_matches(attribute, apps, n=1)
        if near:
            raise AppNotFound(f"{problem}: did you mean -A {module.__name__}:{near[0]}?")
    raise AppNotFound(f"{problem}; its apps: {', '.join(apps) or 'none'}")


def app_in(module: ModuleType) -> App:
    """The module's application: by name, by being the only one, or in a submodule."""
    for name in FALLBACKS:
        found = getattr(module, name, None)
        if isinstance(found, App):
            return found
    apps = {name: value for name, value in vars(module).items() if isinstance(value, App)}
    if len(set(map(id, apps.values()))) == 1:
        return next(iter(apps.values()))
    if apps:
        raise AppNotFound(
            f"the module {module.__name__} has several apps: "
            f"say which, as -A {module.__name__}:{min(apps)}"
        )
    if hasattr(module, "__path__"):
        for name in FALLBACKS:
            if exists(f"{module.__name__}.{name}"):
                return app_in(import_module(f"{module.__name__}.{name}"))
    raise AppNotFound(
        f"the module {module.__name__} has no App in it; it needs a line like "
        f"app = App({module.__name__!r}), or name another with -A module:attribute"
    )
