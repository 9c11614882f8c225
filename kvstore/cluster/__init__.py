"""Several nodes on one journal: who leads, who there is, and how leadership changes hands."""
