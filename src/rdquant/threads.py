"""What threads that code different pictures must not do at once."""

from __future__ import annotations

import threading

#: held while networks or searches run. They use all cores by themselves; two at once would need the memory of
#: two, and not every threading layer of numba survives it.
PARALLEL = threading.RLock()
