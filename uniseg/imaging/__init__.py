"""CT volumes as arrays: files, orientation, Hounsfield units, grids, the body, connected components. No torch here."""
