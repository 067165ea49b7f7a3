"""Where the GPU's kernels run in tests: on a GPU, or on the CPU in Triton's interpreter.

Triton decides this when it is imported, and importing transformers imports it. So `tests/conftest.py` imports
this module before anything of that kind.
"""

from __future__ import annotations

import os
import sys

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
INTERPRETED = DEVICE.type == "cpu"

if INTERPRETED:
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("triton was imported before tests.gpu could ask for its interpreter")
    os.environ["TRITON_INTERPRET"] = "1"
