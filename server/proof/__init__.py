"""The parity proof: what is served is compared with PEFT's own forward, in a process of its own."""
