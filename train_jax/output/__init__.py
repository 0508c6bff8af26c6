"""What a run leaves: its folder, checkpoints, report, summary, plots."""
