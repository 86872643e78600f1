"""Options of the commands, a file per topic: ``add`` declares them."""
