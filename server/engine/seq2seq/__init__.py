"""Bases with an encoder and a decoder: the prompt is the source, the answer is the target."""
