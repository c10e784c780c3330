"""What people look at: figures, the report page and the command line."""
