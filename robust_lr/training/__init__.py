"""Adversarial training: the loop, its adversary, schedules, run folders, several processes."""
