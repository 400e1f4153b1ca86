  # The next load balancer chooses the address, by the header, or lane 0 without one.
