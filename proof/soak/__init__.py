"""Has threads and tasks use pools for a long time, with faults all the while, and watches that nothing is lost."""
