"""The parts that the stacks are made of; one file, one construct."""
