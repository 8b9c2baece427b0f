"""Theory: FLOPs, bytes and communication of each operator, and the hardware that bounds them."""
