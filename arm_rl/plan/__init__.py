"""What a run needs and how long its steps take, before any GPU is paid for: memory, roofline and a simulation of the driver."""
