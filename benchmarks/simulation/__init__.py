"""The scheduler in virtual time: the very functions that workers claim by, over a cluster that is only imagined."""
