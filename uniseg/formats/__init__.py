"""Files and tables for other programs: the names, colours and numbers of labels as viewers and challenges expect them."""
