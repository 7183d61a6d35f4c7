"""The one floor that owns tasks, threads, processes, queues and clocks."""
