"""CT volumes as arrays: files, orientation, Hounsfield units, grids, bodies, components. No torch here."""
