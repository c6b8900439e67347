"""From a downloaded checkpoint to a published version: `rung models import`.

    files            which of its files make a version (`files.py`; of a LoRA adapter, and what its
                     base lends it: `adapter.py`)
    family, recipe   told from configuration, tokenizer and tensor shapes (`detection.py`)
    draft            the manifest but for its golden scores, and whether the family can read its
                     items (`draft.py`, `golden_items.py`)
    golden scores    by the engine, in a process of its own (`golden_process.py`)
    publish          into the model folder, which is then opened as a server opens it

`importing.py` walks this way from top to bottom; `request.py` is what it is asked for. Nothing is
written before everything is known to fit, and what is written is removed when something fails.
"""

from prm.importing.detection import Asked
from prm.importing.golden_process import Watch
from prm.importing.importing import Imported, import_checkpoint
from prm.importing.request import ImportRequest

__all__ = ["Asked", "ImportRequest", "Imported", "Watch", "import_checkpoint"]
