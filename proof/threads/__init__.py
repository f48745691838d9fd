"""Has threads use a real pool in every order in which they could, up to so many changes of place."""
