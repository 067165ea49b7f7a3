"""What the engine does differently on a CUDA device: attention kernels, and sampling in place."""
