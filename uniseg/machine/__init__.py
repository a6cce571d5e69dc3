"""What a process asks of its machine. Nothing here knows of CT or networks."""
