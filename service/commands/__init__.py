"""The commands of ``edgefill``, one per module.

Each module has ``add(commands)``, which describes its arguments, and imports what it works with
only when it runs, so that ``edgefill --help`` is quick.
"""

from __future__ import annotations

__all__: list[str] = []
