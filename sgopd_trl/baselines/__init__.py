"""The baselines of the paper's Table 1 that TRL trains: SFT and SeqKD, GKD, GRPO. One module each, with a `build`."""
