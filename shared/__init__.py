"""What the producer and the workers both know: settings, tables, transitions, tasks, storage, queue."""
