"""`python -m laxity.streams.runtime`: one scheduler process, all settings from the environment."""

from __future__ import annotations

import sys

from laxity.schemas.config import load
from laxity.schemas.settings import settings
from laxity.streams.runtime.entry import scheduler
from laxity.streams.runtime.settings import HostSettings

if __name__ == "__main__":
    sys.exit(scheduler(settings(), HostSettings(), load()))
