"""Roofline model: FLOPs, bytes and communication of each operator, and the hardware limits that bound them."""
