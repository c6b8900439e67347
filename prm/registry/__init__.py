"""Model versions on disk: what a folder must hold, and how one is published and verified.

    models/<name>/<version>/  manifest.json  *.safetensors  config.json  tokenizer files  STABLE
    models/<name>/live.json   {"live": "<version>"}
    models/<name>/calibration/<version>/<policy>.json   see prm/calibration_files.py

A folder without STABLE (written last) does not exist for us. Names and versions come from listing
the directory, never from a caller: a name in a request is looked up, not joined to a path.

Read `registry.py` first, then `version.py` (what `load_version` verifies), `fit.py` (whether the
parts fit each other) and `publishing.py`.
"""

from prm.registry.fit import adapter_base, check_fit, check_reference, references_of
from prm.registry.names import PICKLE_SUFFIXES
from prm.registry.publishing import live_version, publish
from prm.registry.registry import Registry
from prm.registry.version import load_version, read_version

__all__ = [
    "PICKLE_SUFFIXES",
    "Registry",
    "adapter_base",
    "check_fit",
    "check_reference",
    "live_version",
    "load_version",
    "publish",
    "read_version",
    "references_of",
]
