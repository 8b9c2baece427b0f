"""What a step must cost: operations, bytes and communication of each operator, and the hardware that bounds them."""
