"""Value types and protocols that every other package of the server builds on."""
