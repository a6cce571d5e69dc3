"""What every command and every result states about the program: its version, and what it must not be used for."""

__version__ = "0.1.0"

NOT_A_MEDICAL_DEVICE = "Research software, not a medical device: not for diagnosis or treatment."
