"""What Ray reads when it is imported, whichever test does that first."""

from __future__ import annotations

import os

from unbackdoor.cluster import SETTINGS

os.environ.update(SETTINGS)
# A cluster of tests reports even that it reports nothing.
os.environ["RAY_USAGE_STATS_REPORT_URL"] = "http://127.0.0.1:9"
