"""The mesh in virtual time: the shipped decisions of `mesh.control` on simulated nodes, links and faults."""
