"""What a node keeps on disk: the data folder, its identity, model bytes by hash, deployment records."""
