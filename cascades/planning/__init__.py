"""What a pair takes on a TPU slice, by the TPU compiler itself: no TPU is needed, and nothing here is a measurement."""
