"""Files and tables for other programs: names, colours and numbers of labels as viewers and challenges expect them."""
