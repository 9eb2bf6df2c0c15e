"""A jump: candidates, the search over them, the verdict, and what one jump tells the next."""
