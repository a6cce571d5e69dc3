"""What a process needs of its machine: device, memory, files, signals, other processes, terminal. Nothing about CTs."""
