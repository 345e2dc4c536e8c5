"""Pictures of a converted graph: DOT and SVG, coloured by engine."""
