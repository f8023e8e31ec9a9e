"""What a process needs around the work: files, locks, journal, cache, memory, progress and display."""
