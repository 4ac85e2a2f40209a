"""What our HTML pages are made of: one file each, which needs neither network nor script."""
