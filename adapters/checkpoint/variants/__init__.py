"""One small pure function for each PEFT tuner and LoRA variant: from checkpoint tensors to records."""
