"""The tuners of PEFT that no record can express exactly, each with why and what to do."""

from __future__ import annotations

_CONVERT = "; convert it with peft.convert_to_lora, which gives the nearest LoRA, and upload the result"
_MERGE = "; merge it into a copy of the base with merge_and_unload() and serve that, or train a LoRA"
_TRAIN = "; train a LoRA instead"
_PROMPT = "it puts trained vectors before the prompt, not into linear layers" + _TRAIN

UNSUPPORTED = {
    "ADAMSS": "its update depends on clusters of the base's weights that are not in the file" + _TRAIN,
    "ADAPTION_PROMPT": _PROMPT,
    "BOFT": "its update has full rank" + _MERGE,
    "C3A": "its update has full rank" + _CONVERT,
    "CARTRIDGE": _PROMPT,
    "CPT": _PROMPT,
    "FOURIERFT": "its update has full rank" + _CONVERT,
    "FROD": "its update has full rank" + _MERGE,
    "GLORA": "its update has full rank" + _MERGE,
    "HIRA": "its update has full rank" + _MERGE,
    "LILY": "its update of one token depends on the others in the batch" + _TRAIN,
    "MULTITASK_PROMPT_TUNING": _PROMPT,
    "OFT": "its update has full rank" + _MERGE,
    "OSF": "it trains the base's own singular vectors, an update of full rank" + _MERGE,
    "PEANUT": "its update is not linear" + _TRAIN,
    "POLY": "it needs task ids, which requests do not have" + _TRAIN,
    "PREFIX_TUNING": _PROMPT,
    "PROMPT_TUNING": _PROMPT,
    "PSOFT": (
        "its factors are not in the file but made by a decomposition of the base whose signs differ between "
        "machines" + _CONVERT
    ),
    "P_TUNING": _PROMPT,
    "RANDLORA": "its update has full rank" + _CONVERT,
    "ROAD": "its update has full rank" + _MERGE,
    "SHADOW": "it runs a second model beside the base" + _TRAIN,
    "SHIRA": "its update is sparse and of full rank" + _MERGE,
    "SUPERTUNING": "its update is sparse and of full rank" + _MERGE,
    "WAVEFT": "its update has full rank" + _CONVERT,
    "XLORA": "it mixes several adapters token by token; serve its experts as adapters of their own",
}
