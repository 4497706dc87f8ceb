"""Where data files are, and what to say when they are missing or are not what they should be."""

from __future__ import annotations

import os
from pathlib import Path

from fedopt.registry import ConfigError

VARIABLE = "FEDOPT_DATA"


def data_path(relative: str, where: str) -> Path:
    """The file or folder `relative` below the folder that FEDOPT_DATA names; an absolute path stands for itself.

    where: the config key that holds the path.

    Raises ConfigError, naming the path looked at, FEDOPT_DATA and the config key, if there is no such file.
    """
    path = Path(relative).expanduser()
    root = os.environ.get(VARIABLE)
    if not path.is_absolute():
        if not root:
            raise ConfigError(
                where,
                f"'{relative}' is a relative path and {VARIABLE} is not set; set the environment variable {VARIABLE}"
                f" to the folder of your data sets, or give an absolute path in {where}",
            )
        path = Path(root).expanduser() / path
    if not path.exists():
        raise ConfigError(
            where,
            f"there is no {path} ({VARIABLE} is {root or 'not set'}); put the file there, change {VARIABLE},"
            f" or give another path in {where}. Nothing is downloaded",
        )
    return path


def wrong_file(path: Path | str, where: str, expected: str, found: str) -> ConfigError:
    """The error for a file that is truncated or of another format."""
    return ConfigError(where, f"{path} cannot be used: expected {expected}, found {found}")
