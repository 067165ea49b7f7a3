"""What the engine does in native code on the CPU."""
