"""Studies: published systems, asked again in virtual time."""
