"""Adversarial training: the loop, the attack on its batches, schedules, run folders, distributed training."""
