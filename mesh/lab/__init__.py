"""A lab: a small fleet on one Linux machine, built of real daemons in network namespaces and control groups."""
