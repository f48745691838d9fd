"""The contestants: millpond, its peers, and the floors. A module for each kind of thing that is lent."""
