"""The variable that switches native code off."""

DISABLE = "MULTILORA_NATIVE"
"""Set to `0`, it keeps native code from being compiled and used."""
