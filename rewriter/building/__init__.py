"""From a cut model to engines: plan, compile, blame, cache."""
