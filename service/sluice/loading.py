"""`load("module:attr")`: an extension point's implementation by its import string, resolved at start.

Importing runs the module: what is named in the configuration is trusted as the configuration is.
"""

import importlib
from functools import reduce
from typing import Any

from sluice.yaml_lines import ConfigError


def load(target: str, *, setting: str = "extension") -> Any:
    """What `target` names; its `ConfigError` tells a module that is missing from one that fails while imported.

    `setting` is where the target stands in the configuration, and is named in the error.
    """
    module_name, colon, attributes = target.partition(":")
    if not (colon and module_name and attributes):
        raise ConfigError(f"{setting}: {target!r} is neither built in nor of the form module:attribute")
    try:
        module = importlib.import_module(module_name)
    except Exception as exc:
        # The named module or a package above it is absent; anything else went wrong inside it.
        if isinstance(exc, ModuleNotFoundError) and exc.name and f"{module_name}.".startswith(f"{exc.name}."):
            raise ConfigError(f"{setting}: {target!r}: there is no module {exc.name!r} (is it installed here?)") from exc
        raise ConfigError(f"{setting}: {target!r}: importing {module_name} failed: {type(exc).__name__}: {exc}") from exc
    try:
        return reduce(getattr, attributes.split("."), module)
    except AttributeError as exc:
        raise ConfigError(f"{setting}: {target!r}: {exc}") from exc
