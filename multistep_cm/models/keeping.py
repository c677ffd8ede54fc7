"""The name of what a rematerialised block keeps under `model.remat=partial`."""

KEPT = "kept"
