"""From predictions and references to the numbers of Sections 4.2 to 4.7. Read readings.py first."""
