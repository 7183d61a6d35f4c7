"""Decides which segments run on which devices, as pure functions over `Graph` and `Costs`."""
