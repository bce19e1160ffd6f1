"""Side-by-side measurements: this project against what an experienced engineer would write without it."""
