"""What the engine does differently on a CUDA device: attention kernels, and sampling without a copy of the logits."""
