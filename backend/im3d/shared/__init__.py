"""What both sides of the pipe need: the standard library only, imported by the add-on too."""
