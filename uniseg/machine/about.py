"""What every command and every result says of the program: its version, and what it is not for."""

__version__ = "0.1.0"

NOT_A_MEDICAL_DEVICE = "Research software, not a medical device: not for diagnosis or treatment."
