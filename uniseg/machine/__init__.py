"""What a process asks of its machine: devices, memory, files, signals, other processes, the terminal. Nothing about CTs."""
