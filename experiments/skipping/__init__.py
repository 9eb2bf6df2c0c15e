"""What a skip of m steps is worth: how near it comes to really taking them, and whole runs that skip."""
