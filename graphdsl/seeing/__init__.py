"""What a user sees of a graph and of what the passes did to it: drawings and pages."""
