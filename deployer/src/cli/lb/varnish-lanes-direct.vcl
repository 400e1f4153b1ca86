  # A lane has an address of its own, whatever worker answers there.
