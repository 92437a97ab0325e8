"""python -m grafana: writes the dashboards, from the code beside this file to the JSON that Grafana reads.

grafana/dashboards/*.json are committed; tests/unit/test_grafana.py sees that they are what the code gives.
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import fleet, host, offload, probe, worker

FOLDER = Path(__file__).parent / "dashboards"


def dashboards() -> dict[str, str]:
    """The text of each file, by its name."""
    return {
        f"{module.__name__.rpartition('.')[2]}.json": json.dumps(
            module.dashboard().build(), cls=JSONEncoder, indent=1, sort_keys=True
        )
        + "\n"
        for module in (fleet, host, worker, offload, probe)
    }


if __name__ == "__main__":
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
