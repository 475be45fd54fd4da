"""From `module:app` to the App object, as uvicorn does it. Every failure is one line that says what to do."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from ..actors.app import App


class AppImportError(ValueError):
    """`module:app` does not lead to an App; the message says why and what to do."""


def load_app(path: str, app_dir: str | None = None) -> App:
    """Import the app that `path` (`package.module:attribute`) names, looking in `app_dir` first."""
    module_name, colon, attribute = path.partition(":")
    if not colon or not module_name or not attribute:
        raise AppImportError(f"{path!r} names no app: write module:app, for example bank:app")
    if app_dir is not None:
        folder = str(Path(app_dir).resolve())
        if not Path(folder).is_dir():
            raise AppImportError(f"--app-dir {app_dir}: no such folder")
        if folder not in sys.path:
            sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise AppImportError(
                f"no module {module_name!r} in {app_dir or 'the Python path'}: give its folder with --app-dir"
            ) from None
        raise AppImportError(f"{module_name} needs {error.name!r}, which is not installed: install it") from None
    except (Exception, SystemExit) as error:  # a module that ends the process would end us without a word
        raise AppImportError(
            f"{module_name} cannot be imported: {type(error).__name__}: {error}; it must import without an error "
            f"(try: python -c 'import {module_name}')"
        ) from error
    target: object = module
    for name in attribute.split("."):
        target = getattr(target, name, None)
    if not isinstance(target, App):
        found = "there is none" if target is None else f"it is a {type(target).__name__}"
        raise AppImportError(f"{path}: {attribute} must be an atoll.App, {found}; write {module_name}:NAME of your App")
    return target
