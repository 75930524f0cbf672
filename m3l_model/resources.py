# SPDX-License-Identifier: Apache-2.0
"""Find the files that are installed beside the code: config/ and launch/."""

from __future__ import annotations

from pathlib import Path

from m3l_model.errors import M3LError

_PACKAGE = "m3l_ros"


def share_path(relative: str) -> Path:
    """Give the absolute path of a file or folder that comes with the package.

    One rule serves every way to install: a source tree, an editable install and ``colcon build --symlink-install``
    have the files beside the code, in the folder of package.xml; ``colcon build``, a wheel in an environment or under
    ``pip install --user`` and ``--target`` have them in ``share/m3l_ros`` of a folder above the code.

    Args:
        relative: as in the source tree, for instance ``config/labels/demo.yaml``.

    Raises:
        M3LError: there is no such file.
    """
    code = Path(__file__).resolve().parent.parent
    folders = [folder / "share" / _PACKAGE for folder in (code, *code.parents)]
    if (code / "package.xml").is_file():
        folders.insert(0, code)
    for folder in folders:
        if (folder / relative).exists():
            return folder / relative
    raise M3LError(
        f"{relative} of {_PACKAGE} is not installed (looked beside and above {code}); install it again"
    )
