"""What a run shows while it goes and what it leaves: evaluation, curves, advice, model card, lineage."""
