"""What files for devices keep of a network: sizes, latencies and the accuracy of the files."""
