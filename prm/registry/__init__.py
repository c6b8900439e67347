"""Model versions on disk: what a folder must hold, and how one is published and verified.

    models/<name>/<version>/  manifest.json  *.safetensors  config.json  tokenizer files  STABLE
    models/<name>/live.json   which versions answer for the name; see pointer.py
    models/<name>/gate/<version>.json   what a gate said of it; see verdicts.py
    models/<name>/calibration/<version>/<policy>.json   see prm/calibration_files.py

A folder without STABLE (written last) does not exist for us. Names and versions come from listing
the directory, never from a caller: a name in a request is looked up, not joined to a path.

Read `registry.py` first, then `version.py` (what `load_version` verifies), `fit.py` (whether the
parts fit each other) and `publishing.py`.
"""

from prm.registry.fit import adapter_base, check_fit, check_reference, references_of
from prm.registry.names import PICKLE_SUFFIXES
from prm.registry.pointer import (
    Pointer,
    Trial,
    check_may_serve,
    promote,
    published,
    read_pointer,
    reject,
    rollback,
    try_out,
)
from prm.registry.publishing import publish
from prm.registry.registry import Registry, read_pointers
from prm.registry.retention import Pruned, prune
from prm.registry.verdicts import Verdict, read_verdict, write_verdict
from prm.registry.version import load_version, read_version

__all__ = [
    "PICKLE_SUFFIXES",
    "Pointer",
    "Pruned",
    "Registry",
    "Trial",
    "Verdict",
    "adapter_base",
    "check_fit",
    "check_may_serve",
    "check_reference",
    "load_version",
    "promote",
    "prune",
    "publish",
    "published",
    "read_pointer",
    "read_pointers",
    "read_verdict",
    "read_version",
    "references_of",
    "reject",
    "rollback",
    "try_out",
    "write_verdict",
]
