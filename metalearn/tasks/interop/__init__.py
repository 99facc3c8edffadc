"""What other libraries hold, as task sources, and ours as theirs: a torch `Dataset`, a learn2learn `Taskset`."""
