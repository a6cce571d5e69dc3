"""Pictures without a plotting package: CT slices with masks, line charts, PNG files."""
