"""What train.py is made of: options, recipe, cases, network, steps, validation, and what a run leaves."""
