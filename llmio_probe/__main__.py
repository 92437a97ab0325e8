"""python -m llmio_probe is llmio-probe."""

import sys

from llmio_probe.cli import main

sys.exit(main())
