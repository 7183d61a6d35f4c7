"""What runs on a device: the node daemon, the coordinator command line, the sensor client.

Thin on purpose: parse arguments, compose what `mesh` offers, print. Heavy packages are imported by
the commands that need them, so that a small board starts quickly.
"""
