"""Modules of the user that are imported before an environment is made: there they add to the registries.

They are named by ``env.plugins``, or installed with an entry point in the group ``reverie.plugins``.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import sys
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path

from reverie.errors import ConfigError

GROUP = "reverie.plugins"

logger = logging.getLogger(__name__)


def load(plugins: Iterable[str]) -> None:
    """Imports what is installed as a plugin, then the modules and Python files; each once per process.

    Raises ConfigError for one that cannot be imported; one that is merely installed is left out with a warning.
    """
    _load_installed()
    for plugin in plugins:
        _load(plugin)


@functools.cache
def _load_installed() -> None:
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            entry.load()
        except Exception as error:  # foreign code may raise anything
            logger.warning("the installed plugin %s is left out: %s: %s", entry.value, type(error).__name__, error)


@functools.cache
def _load(plugin: str) -> None:
    try:
        if plugin.endswith(".py"):
            _import_file(Path(plugin).resolve())
        else:
            importlib.import_module(plugin)
    except (Exception, SystemExit) as error:  # foreign code may raise anything
        raise ConfigError(f"plugin {plugin!r} cannot be imported: {type(error).__name__}: {error}; "
                          "name a module or a file ending in .py") from error  # fmt: skip


def _import_file(path: Path) -> None:
    """Its module has the same name in every process, so that what it defines can be sent from one to another."""
    name = f"{path.stem}_{blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.path.append(str(path.parent))  # it may import its neighbours
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
