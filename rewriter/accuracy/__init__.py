"""The accuracy guard: a target, the search for what breaks it, and the model with that kept in higher precision."""
