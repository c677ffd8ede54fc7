"""Faults, tried until it holds: kills, damage, full disks, lost workers."""
