"""A data check that takes longer than processes wait for each other: `OUT` gets what each found."""

import json
import sys
import time
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from deft_hf.data import domains, shared_work
from deft_hf.data.domains import Domain
from deft_hf.data.roles import without_labels

if __name__ == "__main__":
    out = Path(sys.argv[1])
    state = PartialState(cpu=True, timeout=timedelta(seconds=1))
    domain = Domain.from_streets("clear", count=5, size=(16, 16))
    seen = []

    def slowly(row, *args):
        time.sleep(0.6)
        seen.append(row["id"])
        return inspected(row, *args)

    shared_work._ROUND = 1  # a process looks at files for longer than the others would wait, and tells them after each
    inspected, domains.inspected = domains.inspected, slowly
    report = domain.check(shared=True)
    found = {
        "report": str(report),
        "contents": report.contents,
        "seen": sorted(seen),
        "unreadable": without_labels(domain).unreadable(shared=True),
    }
    (out / f"{state.process_index}.json").write_text(json.dumps(found))
    state.wait_for_everyone()
