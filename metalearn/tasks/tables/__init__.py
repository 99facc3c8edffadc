"""Tables of rows: how they are read and split, and the task `Arrays`."""
