"""Write the reference pages: `python -m worker.reference [FOLDER]`, by default docs/."""

import sys
from pathlib import Path

from worker.reference.pages import pages

folder = Path(sys.argv[1] if sys.argv[1:] else "docs")
for name, text in pages().items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
