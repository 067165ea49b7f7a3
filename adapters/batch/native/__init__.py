"""Native code for the CPU: small-batch products at the speed of memory, compiled at the first start."""
