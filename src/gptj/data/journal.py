"""What an append is about to do, so that whoever opens a store meanwhile sees the whole of it."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from gptj.files import Folder, is_url

JOURNAL = ".append.json"
"""In prepared data: the manifests that are to be, by the folders of their stores. Once it is there
they hold, even before they are in place."""


def pending(store: Folder) -> str | None:
    """What a store's manifest is to be, where that is decided and not done; of this machine's."""
    if is_url(str(store)):
        return None
    own = Path(os.path.realpath(store.on_disk))
    for out in own.parents[:2]:  # that of prepared data, or of a group of them
        with contextlib.suppress(OSError, ValueError):
            written = json.loads((out / JOURNAL).read_text(encoding="utf-8"))
            if (place := own.relative_to(out).as_posix()) in written:
                return str(written[place])
    return None
